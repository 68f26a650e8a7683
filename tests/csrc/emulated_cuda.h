// CUDA on a CPU, for tests of kernels' algorithms: a block's threads are fibers of one thread. Each runs to its next
// barrier before another one runs. Threads run in ascending or in descending order: results that differ show that a
// barrier is missing.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __shared__
#define __launch_bounds__(threads)

namespace emulation {

template <class To, class From>
To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float float_of_half(uint16_t bits) { return bits_of<_Float16>(bits); }
inline uint16_t half_of_float(float x) { return bits_of<uint16_t>(static_cast<_Float16>(x)); }
inline float float_of_bfloat16(uint16_t bits) { return bits_of<float>(uint32_t{bits} << 16); }
inline uint16_t bfloat16_of_float(float x) {
  const uint32_t bits = bits_of<uint32_t>(x);
  return std::isnan(x) ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

struct Index {
  int x;
};
inline Index thread_index, block_index;

constexpr size_t STACK = 1 << 16, MEMORY = 232448;  // shared memory of Hopper

// Runs the threads of one block.
class Block {
 public:
  Block(int threads, bool descending, std::function<void()> body)
      : body_(std::move(body)),
        descending_(descending),
        stacks_(threads * STACK),
        fibers_(threads),
        running_(threads) {}

  // Whether all threads have met the same barriers.
  bool run() {
    current_ = this;
    const int threads = static_cast<int>(fibers_.size());
    for (int i = 0; i < threads; ++i) {
      getcontext(&fibers_[i]);
      fibers_[i].uc_stack.ss_sp = &stacks_[i * STACK];
      fibers_[i].uc_stack.ss_size = STACK;
      fibers_[i].uc_link = &scheduler_;
      makecontext(&fibers_[i], [] { current_->start(); }, 0);
      running_[i] = true;
    }
    for (int alive = threads; alive == threads;) {
      alive = 0;
      for (int turn = 0; turn < threads; ++turn) {
        const int i = descending_ ? threads - 1 - turn : turn;
        thread_index.x = i;
        swapcontext(&scheduler_, &fibers_[i]);
        alive += running_[i];
      }
      if (alive == 0) return true;
    }
    return false;
  }

  static void wait() { swapcontext(&current_->fibers_[thread_index.x], &current_->scheduler_); }

 private:
  void start() {
    body_();
    running_[thread_index.x] = false;
  }

  inline static Block* current_;
  std::function<void()> body_;
  bool descending_;
  std::vector<unsigned char> stacks_;
  std::vector<ucontext_t> fibers_;
  std::vector<char> running_;
  ucontext_t scheduler_;
};

enum Fault { kNone, kBarriers, kSharedMemory };

// Runs all blocks of a kernel whose arguments are where `arguments` points, as the driver takes them. What a block
// finds in its shared memory are NaNs.
template <class... A, size_t... I>
Fault launch(void (*kernel)(A...), std::index_sequence<I...>, unsigned char* memory, int blocks, int threads,
             int shared, int descending, void** arguments) {
  for (int block = 0; block < blocks; ++block) {
    std::memset(memory, 0xff, MEMORY);
    block_index.x = block;
    if (!Block(threads, descending, [&] { kernel(*static_cast<A*>(arguments[I])...); }).run()) return kBarriers;
    for (size_t i = shared; i < MEMORY; ++i) {
      if (memory[i] != 0xff) return kSharedMemory;
    }
  }
  return kNone;
}

template <class... A>
Fault launch(void (*kernel)(A...), unsigned char* memory, int blocks, int threads, int shared, int descending,
             void** arguments) {
  return launch(kernel, std::index_sequence_for<A...>(), memory, blocks, threads, shared, descending, arguments);
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define __syncthreads emulation::Block::wait

// The type of a kernel's shared memory is its own: this follows the kernel.
#define EMULATE_MEMORY(Type) alignas(16) Type memory[emulation::MEMORY / sizeof(Type)];
#define EMULATE(name, ...)                                                                                   \
  extern "C" int name(int blocks, int threads, int shared, int descending, void** arguments) {               \
    return emulation::launch(__VA_ARGS__, reinterpret_cast<unsigned char*>(memory), blocks, threads, shared, \
                             descending, arguments);                                                         \
  }
