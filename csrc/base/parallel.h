// One way to share work between threads: the OpenMP pool that torch runs on, which torch.set_num_threads governs.
#pragma once

#include <omp.h>

#include <cstdint>

namespace fastvae {

// One thread of a team: its number, how many there are, and whether another one has failed.
struct Member {
  int64_t index, count;
  const bool* failed;

  bool should_stop() const {
    bool now;
#pragma omp atomic read
    now = *failed;
    return now;
  }
};

// Calls body(context, member) on every thread of a team of at most `threads`. No exception may leave a parallel region:
// the first one is kept, and thrown again when all threads are done.
void run_team(int threads, void (*body)(const void* context, Member member), const void* context);

inline namespace FASTVAE_ISA {

// Each thread must find this many scalar operations, about 8 us; with fewer, waking it costs more than it saves.
constexpr int64_t kParallelWork = 1 << 17;

// How many threads share the items; 1 inside a team.
inline int threads_for(int64_t items, int64_t work_per_item) {
  const int64_t most = items * work_per_item / kParallelWork;
  const int64_t limit = most < items ? most : items;
  const int threads = omp_get_max_threads() < limit ? omp_get_max_threads() : static_cast<int>(limit);
  return threads <= 1 || omp_in_parallel() ? 1 : threads;
}

// Calls body(member) on every thread of a team.
template <class Body>
inline void parallel_team(int threads, const Body& body) {
  run_team(threads, [](const void* context, Member member) { (*static_cast<const Body*>(context))(member); }, &body);
}

// Calls body(begin, end) on disjoint ranges that cover [0, items); work_per_item counts scalar operations, roughly.
template <class Body>
inline void parallel_ranges(int64_t items, int64_t work_per_item, const Body& body) {
  const int threads = threads_for(items, work_per_item);
  if (threads == 1) {
    if (items > 0) body(0, items);
    return;
  }
  parallel_team(threads, [&](Member m) { body(items * m.index / m.count, items * (m.index + 1) / m.count); });
}

// Calls body(task) for every task in [0, tasks). A thread takes the next task when it is done with one.
template <class Body>
inline void parallel_tasks(int64_t tasks, int64_t work_per_task, const Body& body) {
  const int threads = threads_for(tasks, work_per_task);
  if (threads == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  int64_t next = 0;
  parallel_team(threads, [&](Member m) {
    while (!m.should_stop()) {
      int64_t task;
#pragma omp atomic capture
      task = next++;
      if (task >= tasks) return;
      body(task);
    }
  });
}

}  // namespace FASTVAE_ISA
}  // namespace fastvae
