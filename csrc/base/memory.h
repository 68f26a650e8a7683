// Blocks for large outputs. The first touch of a page costs several times what filling it costs: blocks are huge pages,
// the pool keeps those that are given back, and hands them out again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastvae {

// Takes at least this many bytes, aligned to 2 MiB. Throws std::bad_alloc when the system has none. All functions here
// are safe in several threads.
void* take_block(size_t bytes);
// Allocates nothing, so it cannot fail.
void give_back(void* block) noexcept;
// Returns every free block to the system, and tells how many bytes they had.
size_t release_blocks();

inline namespace FASTVAE_ISA {

// a times b bytes. Throws an std::bad_alloc where no address reaches so far; a negative size reaches too far.
inline size_t checked_bytes(size_t a, size_t b) {
  size_t bytes;
  if (__builtin_mul_overflow(a, b, &bytes)) throw std::bad_array_new_length();
  return bytes;
}

// Small arrays begin with a cache line, or every vector of them would be in two lines.
constexpr std::align_val_t kLine{64};
struct DeleteLines {
  void operator()(void* p) const { ::operator delete(p, kLine); }
};
template <class T>
using Lines = std::unique_ptr<T[], DeleteLines>;
template <class T>
Lines<T> make_lines(int64_t count) {
  return Lines<T>(static_cast<T*>(::operator new(checked_bytes(static_cast<size_t>(count), sizeof(T)), kLine)));
}

// Memory out of the pool for the time of a call.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(count ? take_block(checked_bytes(static_cast<size_t>(count), sizeof(T))) : nullptr)) {}
  ~Scratch() {
    if (data_) give_back(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace FASTVAE_ISA
}  // namespace fastvae
