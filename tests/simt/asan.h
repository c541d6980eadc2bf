// Whether the program has AddressSanitizer. SIMT_ASAN: this file is compiled plainly, for speed, into one that has.
#pragma once
#if defined(__SANITIZE_ADDRESS__) && !defined(SIMT_ASAN)
#define SIMT_ASAN
#endif
#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
