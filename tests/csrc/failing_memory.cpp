// A library to be loaded before all others: it makes chosen allocations of the extension fail, whatever build it is.
// Those of the extension are told by the address that they return to; all others are left alone.
#include <link.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

namespace {

std::atomic<long> countdown{0};

// Where the extension's code lies.
uintptr_t extension_begin = 0, extension_end = 0;

int find_extension(dl_phdr_info* library, size_t, void*) {
  const char* const slash = strrchr(library->dlpi_name, '/');
  if (!slash || strncmp(slash, "/_C.", 4) != 0 || !strstr(library->dlpi_name, "fastvae")) return 0;
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& segment = library->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || !(segment.p_flags & PF_X)) continue;
    extension_begin = library->dlpi_addr + segment.p_vaddr;
    extension_end = extension_begin + segment.p_memsz;
  }
  return 1;
}

bool is_of_extension(void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  return extension_begin <= address && address < extension_end;
}

bool fails(void* caller) { return countdown.load() > 0 && is_of_extension(caller) && countdown.fetch_sub(1) == 1; }

void* allocate(size_t bytes, size_t alignment, void* caller) {
  void* data = nullptr;
  if (fails(caller) || posix_memalign(&data, alignment, bytes ? bytes : 1)) throw std::bad_alloc();
  return data;
}

}  // namespace

// The n-th allocation of the extension from here on fails; 0 makes all succeed.
extern "C" void fail_allocation(long n) {
  dl_iterate_phdr(find_extension, nullptr);
  countdown = n;
}
// How many allocations are left until the one that fails.
extern "C" long allocations_left() { return countdown; }

extern "C" void* aligned_alloc(size_t alignment, size_t bytes) {
  void* data = nullptr;
  return fails(__builtin_return_address(0)) || posix_memalign(&data, alignment, bytes) ? nullptr : data;
}

void* operator new(size_t bytes) { return allocate(bytes, alignof(std::max_align_t), __builtin_return_address(0)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<size_t>(alignment), __builtin_return_address(0));
}
void operator delete(void* data) noexcept { free(data); }
void operator delete(void* data, size_t) noexcept { free(data); }
void operator delete(void* data, std::align_val_t) noexcept { free(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { free(data); }
