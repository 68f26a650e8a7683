#include "base/uniform.h"

#include <algorithm>

#include "base/parallel.h"

namespace fastvae {
namespace {

constexpr int64_t kWorkPerCounter = 64;

// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, 2011); the counter becomes the four words.
void philox(uint64_t seed, uint32_t (&c)[4]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c[0] = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
    c[2] = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace

void draw_uniforms(uint64_t seed, int64_t rows, int64_t columns, int64_t row_offset, float* out) {
  const int64_t quarter = (columns + 3) / 4;
  parallel_ranges(rows, quarter * kWorkPerCounter, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const uint64_t row = static_cast<uint64_t>(row_offset + r);
      float* const to = out + r * columns;
      for (int64_t c = 0; c < quarter; ++c) {
        uint32_t words[4] = {static_cast<uint32_t>(c), static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), 0};
        philox(seed, words);
        // Word l is column l quarters after c.
        for (int64_t l = 0, column = c; l < 4 && column < columns; ++l, column += quarter)
          to[column] = (static_cast<float>(words[l] >> 9) + 0.5f) * 0x1p-23f;
      }
    }
  });
}

}  // namespace fastvae
