// Every kernel of every instruction set on awkward shapes, each array a heap block of exactly its size, so that
// AddressSanitizer sees one number too far; and the instruction sets' results side by side.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "dispatch.h"

using namespace fastvae;

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

template <class T>
struct Inputs {
  int64_t k, n, d, tril_size, row_stride;
  std::unique_ptr<T[]> mu, log_sigma, prior_mu, prior_log_sigma, tril, z, per_row, per_sample;

  Inputs(int64_t k_, int64_t n_, int64_t d_, bool dense)
      : k(k_), n(n_), d(d_), tril_size(dense ? d * d : d * (d - 1) / 2), row_stride(dense ? d : 0) {
    mu = random_array<T>(n * d), log_sigma = random_array<T>(n * d);
    prior_mu = random_array<T>(n * d), prior_log_sigma = random_array<T>(n * d);
    // Solves stay well conditioned.
    tril = random_array<T>(n * tril_size, 0.3 / std::sqrt(static_cast<double>(d))), z = random_array<T>(k * n * d);
    per_row = random_array<T>(n), per_sample = random_array<T>(k * n);
  }
};

template <class T>
std::vector<T> run(const Kernels<T>& kernels, const Inputs<T>& in, bool given) {
  const int64_t k = in.k, n = in.n, d = in.d, seed = 0x123456789abcdef;
  const Extent e{k, n, d};
  const Matrix<T> mu{in.mu.get(), d}, log_sigma{in.log_sigma.get(), d};
  const Matrix<T> prior_mu{in.prior_mu.get(), d}, prior_log_sigma{in.prior_log_sigma.get(), d};
  const Tril<const T> tril{in.tril.get(), in.tril_size, in.row_stride};
  const NoiseSource<T> noise{given ? nullptr : &seed, given ? in.z.get() : nullptr, 3};
  Results<T> r;
  auto samples = r.array(k * n * d), density = r.array(k * n), rows = r.array(n);
  auto a = r.array(n * d), b = r.array(n * d), c = r.array(n * d), f = r.array(n * d), t = r.array(n * in.tril_size);
  const Tril<T> d_tril{t.get(), in.tril_size, in.row_stride};
  const auto keep = [&](bool with_samples, bool with_tril) {
    if (with_samples) r.keep(samples, k * n * d), r.keep(density, k * n);
    if (with_tril) r.keep(t, n * in.tril_size);
    r.keep(a, n * d), r.keep(b, n * d);
  };

  const auto& diag = kernels.diag_gaussian;
  auto kept = r.array(k * n * d);
  diag.fwd(mu, log_sigma, noise, samples.get(), density.get(), nullptr, e);
  diag.fwd(mu, log_sigma, noise, samples.get(), density.get(), kept.get(), e);
  diag.bwd(in.z.get(), in.per_sample.get(), kept.get(), a.get(), b.get(), e);
  keep(true, false);
  if (k == 1) diag.bwd(in.z.get(), in.per_sample.get(), kept.get(), nullptr, b.get(), e);
  diag.log_prob_fwd(in.z.get(), mu, log_sigma, density.get(), e);
  diag.log_prob_bwd(in.per_sample.get(), in.z.get(), mu, log_sigma, samples.get(), a.get(), b.get(), e);
  keep(true, false);
  diag.kl_fwd(mu, log_sigma, rows.get(), n, d);
  diag.kl_bwd(in.per_row.get(), mu, log_sigma, a.get(), b.get(), n, d);
  r.keep(rows, n), keep(false, false);
  diag.kl_prior_fwd(mu, log_sigma, prior_mu, prior_log_sigma, rows.get(), n, d);
  diag.kl_prior_bwd(in.per_row.get(), mu, log_sigma, prior_mu, prior_log_sigma, a.get(), b.get(), c.get(), f.get(), n,
                    d);
  r.keep(rows, n), r.keep(c, n * d), r.keep(f, n * d), keep(false, false);

  const auto& full = kernels.tril_gaussian;
  auto eps = r.array(k * n * d);
  full.fwd(mu, log_sigma, tril, noise, samples.get(), density.get(), nullptr, e);
  full.fwd(mu, log_sigma, tril, noise, samples.get(), density.get(), eps.get(), e);
  full.bwd(in.z.get(), in.per_sample.get(), log_sigma, eps.get(), a.get(), b.get(), d_tril, e);
  keep(true, true);
  full.log_prob_fwd(in.z.get(), mu, log_sigma, tril, density.get(), eps.get(), e);
  full.log_prob_bwd(in.per_sample.get(), eps.get(), log_sigma, tril, samples.get(), a.get(), b.get(), d_tril, e);
  keep(true, true);
  full.kl_fwd(mu, log_sigma, tril, rows.get(), n, d);
  full.kl_bwd(in.per_row.get(), mu, log_sigma, tril, a.get(), b.get(), d_tril, n, d);
  r.keep(rows, n), keep(false, true);
  return r.values;
}

template <class T>
int check(const char* type, double tolerance) {
  const Table* tables[4];
  const int count = available(tables, 4);
  int failures = 0;
  for (int64_t d : {1, 2, 3, 5, 8, 15, 16, 17, 31, 64, 65, 260, 1030})
    for (int64_t n : {0, 1, 3})
      for (int64_t k : {0, 1, 2, 70})
        for (bool dense : {false, true})
          for (bool given : {false, true}) {
            if (d > 100 && (k != 1 || n > 1)) continue;
            const Inputs<T> in(k, n, d, dense);
            const std::vector<T> expected = run(tables[0]->of<T>(), in, given);
            for (int i = 1; i < count; ++i) {
              const std::vector<T> got = run(tables[i]->of<T>(), in, given);
              for (size_t j = 0; j < expected.size(); ++j) {
                const double error = std::abs(static_cast<double>(got[j]) - expected[j]);
                if (!(error <= tolerance * (1 + std::abs(static_cast<double>(expected[j]))))) {
                  std::printf("%s %s k=%ld n=%ld d=%ld dense=%d given=%d result %zu: %g, baseline %g\n", type,
                              tables[i]->isa, k, n, d, dense, given, j, double(got[j]), double(expected[j]));
                  ++failures;
                  break;
                }
              }
            }
          }
  return failures;
}

}  // namespace

int main() {
  const int failures = check<float>("float", 2e-3) + check<double>("double", 1e-5);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
