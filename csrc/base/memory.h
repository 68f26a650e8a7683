// Blocks for large outputs. A page's first touch costs several times what filling it does, so blocks are made of huge
// pages, kept when they are given back, and used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastvae {

// At least this many bytes, 2 MiB aligned. Throws std::bad_alloc when the system has none. Thread-safe, as are the
// others.
void* take_block(size_t bytes);
// Allocates nothing: what has been taken can always be given back.
void give_back(void* block) noexcept;
// Returns every block that nobody holds to the system, and how many bytes that was.
size_t release_blocks();

namespace {

// a times b bytes. Throws an std::bad_alloc where no address reaches so far, negative sizes included.
inline size_t checked_bytes(size_t a, size_t b) {
  size_t bytes;
  if (__builtin_mul_overflow(a, b, &bytes)) throw std::bad_array_new_length();
  return bytes;
}

// Small arrays that begin a cache line, lest every vector of them lie in two.
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

// Memory for a call, whole vectors of it, out of the pool.
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

}  // namespace
}  // namespace fastvae
