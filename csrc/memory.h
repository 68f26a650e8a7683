// Blocks for large outputs. A page's first touch costs several times what filling it does, so blocks are made of huge
// pages, kept when they are given back, and used again.
#pragma once

#include <cstddef>

namespace fastvae {

// At least this many bytes, 2 MiB aligned, or null when the system has none. Thread-safe, as are the others.
void* take_block(size_t bytes);
void give_back(void* block);
// Returns every block that nobody holds to the system, and how many bytes that was.
size_t release_blocks();

}  // namespace fastvae
