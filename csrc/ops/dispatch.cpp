#include "ops/dispatch.h"

#include <cstring>

namespace fastvae {

#define FASTVAE_DECLARE_F32(Functions, stem) Functions<float> stem##_f32();
#define FASTVAE_DECLARE_F64(Functions, stem) Functions<double> stem##_f64();
#define FASTVAE_CALL_F32(Functions, stem) stem##_f32(),
#define FASTVAE_CALL_F64(Functions, stem) stem##_f64(),

#define FASTVAE_DECLARE(isa)                                                                           \
  namespace isa {                                                                                      \
  FASTVAE_OPS(FASTVAE_DECLARE_F32)                                                                     \
  FASTVAE_OPS(FASTVAE_DECLARE_F64)                                                                     \
  static const Table table = {#isa, {FASTVAE_OPS(FASTVAE_CALL_F32)}, {FASTVAE_OPS(FASTVAE_CALL_F64)}}; \
  }

#ifdef FASTVAE_HAS_baseline
FASTVAE_DECLARE(baseline)
#endif
#ifdef FASTVAE_HAS_avx2
FASTVAE_DECLARE(avx2)
#endif
#ifdef FASTVAE_HAS_avx512
FASTVAE_DECLARE(avx512)
#endif

int available(const Table** tables, int capacity) {
  int count = 0;
  const auto add = [&](const Table& table) {
    if (count < capacity) tables[count++] = &table;
  };
#ifdef FASTVAE_HAS_baseline
  add(baseline::table);
#endif
#ifdef FASTVAE_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(avx2::table);
#endif
#ifdef FASTVAE_HAS_avx512
  if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    add(avx512::table);
#endif
  return count;
}

namespace {

const Table* best() {
  const Table* tables[4];
  return tables[available(tables, 4) - 1];
}

const Table*& chosen() {
  static const Table* table = best();
  return table;
}

}  // namespace

const Table& current() { return *chosen(); }

bool select(const char* isa) {
  const Table* tables[4];
  const int count = available(tables, 4);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(tables[i]->isa, isa) == 0) {
      chosen() = tables[i];
      return true;
    }
  }
  return false;
}

}  // namespace fastvae
