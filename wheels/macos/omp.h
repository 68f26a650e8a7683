// The functions of OpenMP that csrc calls. PyTorch's wheel has their library and no header of it.
#pragma once

extern "C" {
int omp_get_max_threads(void);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
int omp_in_parallel(void);
}
