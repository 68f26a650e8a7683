// What keeps a wheel on systems with a C library and a C++ library older than the compiler's: the few newer symbols
// that the kernels would ask for, made of older ones.
#include <new>

#ifdef __x86_64__
#define FASTVAE_OLDEST "GLIBC_2.2.5"
#else
#define FASTVAE_OLDEST "GLIBC_2.17"
#endif
#define FASTVAE_HIDDEN __attribute__((visibility("hidden")))

// The versions of exp and log before 2.29 also set errno.
__asm__(".symver fastvae_old_exp, exp@" FASTVAE_OLDEST);
__asm__(".symver fastvae_old_log, log@" FASTVAE_OLDEST);
extern "C" {
double fastvae_old_exp(double x);
double fastvae_old_log(double x);
FASTVAE_HIDDEN double exp_of(double x) __asm__("exp");
FASTVAE_HIDDEN double log_of(double x) __asm__("log");
double exp_of(double x) { return fastvae_old_exp(x); }
double log_of(double x) { return fastvae_old_log(x); }

// GCC 11's std::exception_ptr counts its references by members that older libraries keep to themselves. Its copies and
// its destruction do the same.
void copy_exception(void* to, const void* from) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void destroy_exception(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
FASTVAE_HIDDEN void add_reference(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
FASTVAE_HIDDEN void release(void** pointer) __asm__("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
FASTVAE_HIDDEN void throw_bad_length() __asm__("_ZSt28__throw_bad_array_new_lengthv");

void add_reference(void* pointer) {
  void* forgotten;
  copy_exception(&forgotten, pointer);
}

void release(void** pointer) {
  destroy_exception(pointer);
  *pointer = nullptr;
}

void throw_bad_length() { throw std::bad_array_new_length(); }
}
