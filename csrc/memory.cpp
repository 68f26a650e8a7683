#include "memory.h"

#include <cstdlib>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastvae {
namespace {

constexpr size_t kHugePage = 2u << 20;
// Free blocks kept beyond this are returned to the system.
constexpr size_t kMostKept = 512u << 20;

struct Block {
  void* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> held, free;
  size_t kept = 0;
};

// Never destroyed: tensors may outlive every static object.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

void* allocate(size_t bytes) {
  void* data = std::aligned_alloc(kHugePage, bytes);
#ifdef __linux__
  if (data) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

}  // namespace

void* take_block(size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  size_t best = p.free.size();
  for (size_t i = 0; i < p.free.size(); ++i) {
    const size_t size = p.free[i].bytes;
    if (size >= bytes && size / 2 <= bytes && (best == p.free.size() || size < p.free[best].bytes)) best = i;
  }
  Block block;
  if (best < p.free.size()) {
    block = p.free[best];
    p.free.erase(p.free.begin() + static_cast<std::ptrdiff_t>(best));
    p.kept -= block.bytes;
  } else {
    block = {allocate(bytes), bytes};
    if (!block.data) return nullptr;
  }
  p.held.push_back(block);
  return block.data;
}

void give_back(void* data) {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  for (size_t i = 0; i < p.held.size(); ++i) {
    if (p.held[i].data != data) continue;
    const Block block = p.held[i];
    p.held[i] = p.held.back();
    p.held.pop_back();
    p.free.push_back(block);
    p.kept += block.bytes;
    break;
  }
  while (p.kept > kMostKept) {
    std::free(p.free.front().data);
    p.kept -= p.free.front().bytes;
    p.free.erase(p.free.begin());
  }
}

size_t release_blocks() {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  const size_t bytes = p.kept;
  for (const Block& block : p.free) std::free(block.data);
  p.free.clear();
  p.kept = 0;
  return bytes;
}

}  // namespace fastvae
