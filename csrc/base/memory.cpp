#include "base/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastvae {
namespace {

constexpr size_t kHugePage = 2u << 20;
// The pool keeps at most this many bytes of free blocks: a sixteenth of the memory, between 512 MiB and 2 GiB.
size_t most_kept() {
  constexpr size_t least = size_t{512} << 20, most = size_t{2} << 30;
#ifdef __linux__
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0)
    return std::clamp(static_cast<size_t>(pages) / 16 * static_cast<size_t>(page), least, most);
#endif
  return least;
}

struct Block {
  void* data;
  size_t bytes;
  bool held;
};

// Free blocks are in the order in which they were given back.
struct Pool {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t kept = 0;
  const size_t most = most_kept();

  // Returns free blocks to the system, the oldest first, until the pool keeps at most `most` bytes.
  void shrink(size_t most) {
    size_t left = 0;
    for (const Block& block : blocks) {
      if (block.held || kept <= most) {
        blocks[left++] = block;
        continue;
      }
      std::free(block.data);
      kept -= block.bytes;
    }
    blocks.resize(left);
  }
};

// Never destroyed: tensors may outlive every static object.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

void* allocate(size_t bytes) {
  void* data = std::aligned_alloc(kHugePage, bytes);
  if (!data) throw std::bad_alloc();
#ifdef __linux__
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace

void* take_block(size_t bytes) {
  if (bytes > SIZE_MAX - kHugePage) throw std::bad_alloc();
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  Block* best = nullptr;
  for (Block& block : p.blocks)
    if (!block.held && block.bytes >= bytes && block.bytes / 2 <= bytes && (!best || block.bytes < best->bytes))
      best = &block;
  if (best) {
    best->held = true;
    p.kept -= best->bytes;
    return best->data;
  }
  // The list grows first: if it cannot, no block is lost.
  if (p.blocks.size() == p.blocks.capacity()) p.blocks.reserve(2 * p.blocks.size() + 16);
  p.blocks.push_back({allocate(bytes), bytes, true});
  return p.blocks.back().data;
}

void give_back(void* data) noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  const auto found = std::find_if(p.blocks.begin(), p.blocks.end(), [&](const Block& b) { return b.data == data; });
  if (found == p.blocks.end()) return;
  found->held = false;
  p.kept += found->bytes;
  std::rotate(found, found + 1, p.blocks.end());
  p.shrink(p.most);
}

size_t release_blocks() {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  const size_t bytes = p.kept;
  p.shrink(0);
  return bytes;
}

}  // namespace fastvae
