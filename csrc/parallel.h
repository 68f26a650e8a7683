// One way to share work between threads: the OpenMP pool that torch runs on, which torch.set_num_threads governs.
#pragma once

#include <omp.h>

#include <cstdint>

namespace fastvae {
namespace {

// Each thread must find this many scalar operations, about 8 us of them, else waking it costs more than it saves.
constexpr int64_t kParallelWork = 1 << 17;

// Calls body(begin, end) on disjoint ranges that cover [0, items); work_per_item counts scalar operations, roughly.
template <class Body>
inline void parallel_ranges(int64_t items, int64_t work_per_item, const Body& body) {
  const int64_t most = items * work_per_item / kParallelWork;
  const int64_t limit = most < items ? most : items;
  const int threads = omp_get_max_threads() < limit ? omp_get_max_threads() : static_cast<int>(limit);
  if (threads <= 1 || omp_in_parallel()) {
    if (items > 0) body(0, items);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t count = omp_get_num_threads(), index = omp_get_thread_num();
    body(items * index / count, items * (index + 1) / count);
  }
}

// Calls body(task) for every task in [0, tasks), each thread taking the next when it is done with one.
template <class Body>
inline void parallel_tasks(int64_t tasks, int64_t work_per_task, const Body& body) {
  const int64_t most = tasks * work_per_task / kParallelWork;
  const int64_t limit = most < tasks ? most : tasks;
  const int threads = omp_get_max_threads() < limit ? omp_get_max_threads() : static_cast<int>(limit);
  if (threads <= 1 || omp_in_parallel()) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < tasks; ++task) body(task);
}

}  // namespace
}  // namespace fastvae
