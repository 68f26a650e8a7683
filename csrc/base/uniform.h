// Uniform numbers of the noise contract, see fastvae/rng.py: the same bits on every processor.
#pragma once

#include <cstdint>

namespace fastvae {

// Writes (rows, columns).
void draw_uniforms(uint64_t seed, int64_t rows, int64_t columns, int64_t row_offset, float* out);

}  // namespace fastvae
