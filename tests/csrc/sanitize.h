// What the checks share: random arrays of exactly their size, and the instruction sets' results side by side.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "ops/dispatch.h"

namespace fastvae {

// Failures of the kernels of decoders, of those on images - convolutions, gates, mixtures - and of the sampler.
int check_decoders();
int check_images();
int check_samplers();

namespace {

std::mt19937 engine(1);

template <class T>
std::unique_ptr<T[]> random_array(int64_t count, double scale = 0.3) {
  std::unique_ptr<T[]> values(new T[count]);
  std::normal_distribution<double> normal(0.0, scale);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<T>(normal(engine));
  return values;
}

template <class T>
struct Results {
  std::vector<T> values;

  // A fresh array, whose contents keep() compares later.
  std::unique_ptr<T[]> array(int64_t count) {
    auto out = std::make_unique<T[]>(count);
    std::fill_n(out.get(), count, std::nan(""));
    return out;
  }
  void keep(const std::unique_ptr<T[]>& array, int64_t count) {
    values.insert(values.end(), &array[0], &array[0] + count);
  }
};

template <class T, class Run>
int compare(const char* name, double tolerance, const Run& run) {
  const Table* tables[4];
  const int count = available(tables, 4);
  const std::vector<T> expected = run(tables[0]->of<T>());
  int failures = 0;
  for (int i = 1; i < count; ++i) {
    const std::vector<T> got = run(tables[i]->of<T>());
    for (size_t j = 0; j < expected.size(); ++j) {
      const double error = std::abs(static_cast<double>(got[j]) - expected[j]);
      if (error <= tolerance * (1 + std::abs(static_cast<double>(expected[j])))) continue;
      std::printf("%s %s result %zu: %g, baseline %g\n", name, tables[i]->isa, j, double(got[j]), double(expected[j]));
      ++failures;
      break;
    }
  }
  return failures;
}

}  // namespace
}  // namespace fastvae
