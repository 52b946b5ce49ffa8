// Runs CUDA C++ kernels on a CPU, from the very text that NVRTC compiles: g++ -std=c++17 -fopenmp -include cuda_shim.hpp
//
// An OS thread runs one block at a time; the threads of the block are fibers, each on its own stack. A fiber runs until
// it meets __syncthreads() or a warp shuffle, then the next one runs: an order as bad as any for a missing barrier.
// DRED_SHIM_REVERSE=1 in the environment runs them from the last to the first. Blocks are spread over OpenMP threads,
// and __shared__ variables are `static thread_local`; with DRED_SHIM_STATIC `static`, for builds without OpenMP.
//
// Aborts with a message where some threads of a block have returned while others wait at a barrier, where threads wait
// for each other for ever, and where a launch asks for no block, no thread or more than 1024 threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>
#include <sys/mman.h>
#if !defined(__x86_64__) && !defined(DRED_SHIM_UCONTEXT)
#define DRED_SHIM_UCONTEXT
#endif
#ifdef DRED_SHIM_UCONTEXT
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#ifdef DRED_SHIM_STATIC
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#define __constant__ static
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
static inline float2 make_float2(float a, float b) { return {a, b}; }
static inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
static inline double2 make_double2(double a, double b) { return {a, b}; }

template <class To, class From>
static inline To dred_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "");
  To out;
  memcpy(&out, &value, sizeof(out));
  return out;
}
static inline int __float_as_int(float v) { return dred_bits<int>(v); }
static inline float __int_as_float(int v) { return dred_bits<float>(v); }
static inline long long __double_as_longlong(double v) { return dred_bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return dred_bits<double>(v); }
static inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
static inline double rsqrt(double v) { return 1.0 / sqrt(v); }
template <class T>
static inline T __ldg(const T* p) { return *p; }
template <class A, class B>
static inline typename std::common_type<A, B>::type min(A a, B b) { return a < b ? a : b; }
template <class A, class B>
static inline typename std::common_type<A, B>::type max(A a, B b) { return a > b ? a : b; }

namespace dred_shim {

constexpr size_t STACK = 1024 * 1024, GUARD = 4096;  // bytes; a guard page ends a fiber that overruns its stack
enum State { READY, BARRIER, DONE };

struct Fiber {
  void* sp = nullptr;
  char* stack = nullptr;
  unsigned thread = 0;
  State state = READY;
#ifdef DRED_SHIM_UCONTEXT
  ucontext_t context;
#endif
};

struct Warp {
  unsigned arrived = 0, generation = 0, live = 32;
  alignas(16) unsigned char slot[2][32][16];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  dim3 index, size, grid;
  Fiber* current = nullptr;
  void* scheduler = nullptr;
  const std::function<void()>* kernel = nullptr;
  unsigned long turns = 0;  // steps of any fiber that got somewhere
#ifdef DRED_SHIM_UCONTEXT
  ucontext_t scheduler_context;
#endif
};

inline thread_local Block* B = nullptr;

[[noreturn]] inline void fail(const char* what, unsigned a = 0, unsigned b = 0) {
  fprintf(stderr, "cuda_shim: block (%u, %u): ", B ? B->index.x : 0, B ? B->index.y : 0);
  fprintf(stderr, what, a, b);
  fputc('\n', stderr);
  abort();
}

#ifndef DRED_SHIM_UCONTEXT
extern "C" void dred_swap(void** save, void* load);
asm(".pushsection .text,\"ax\",@progbits\n.weak dred_swap\n.type dred_swap,@function\ndred_swap:\n"
    " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n.popsection\n");
#endif

inline void pause() {  // back to the scheduler
#ifdef DRED_SHIM_UCONTEXT
  swapcontext(&B->current->context, &B->scheduler_context);
#else
  dred_swap(&B->current->sp, B->scheduler);
#endif
}

inline void resume(Fiber& f) {
  B->current = &f;
#ifdef DRED_SHIM_UCONTEXT
  swapcontext(&B->scheduler_context, &f.context);
#else
  dred_swap(&B->scheduler, f.sp);
#endif
}

inline void entry() {
  B->turns++;
  (*B->kernel)();
  B->current->state = DONE;
  B->turns++;
  B->warps[B->current->thread / 32].live--;
  for (;;) pause();
}

inline void prepare(Fiber& f) {
  f.state = READY;
#ifdef DRED_SHIM_UCONTEXT
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack + GUARD;
  f.context.uc_stack.ss_size = STACK - GUARD;
  f.context.uc_link = nullptr;
  makecontext(&f.context, (void (*)())entry, 0);
#else
  void** s = (void**)(f.stack + STACK - 64);
  *--s = nullptr;
  *--s = (void*)entry;
  for (int i = 0; i < 6; i++) *--s = nullptr;
  f.sp = s;
#endif
}

inline void sync() {
  B->current->state = BARRIER;
  B->turns++;
  pause();
}

inline void warp_barrier() {
  Warp& w = B->warps[B->current->thread / 32];
  const unsigned generation = w.generation;
  B->turns++;
  if (++w.arrived >= w.live) {
    w.arrived = 0;
    w.generation++;
  } else {
    while (w.generation == generation) pause();
    B->turns++;
  }
}

template <class T>
inline T shuffle(T value, int lane) {
  static_assert(sizeof(T) <= 16, "");
  Warp& w = B->warps[B->current->thread / 32];
  const unsigned turn = w.generation & 1;
  memcpy(w.slot[turn][B->current->thread % 32], &value, sizeof(T));
  warp_barrier();
  T out;
  memcpy(&out, w.slot[turn][lane & 31], sizeof(T));
  return out;
}

inline void run_block(Block& b, const std::function<void()>& kernel, bool reverse) {
  B = &b;
  b.kernel = &kernel;
  const unsigned n = b.fibers.size();
  for (unsigned t = 0; t < n; t++) {
    b.fibers[t].thread = t;
    prepare(b.fibers[t]);
  }
  for (unsigned w = 0; w < b.warps.size(); w++) b.warps[w].arrived = b.warps[w].generation = 0, b.warps[w].live = std::min(32u, n - 32 * w);
  for (;;) {
    unsigned done = 0, waiting = 0;
    const unsigned long turns = b.turns;
    for (unsigned t = 0; t < n; t++) {
      Fiber& f = b.fibers[reverse ? n - 1 - t : t];
      if (f.state == READY) resume(f);
      done += f.state == DONE;
      waiting += f.state == BARRIER;
    }
    if (done == n) return;
    if (done + waiting == n) {
      if (done) fail("divergent __syncthreads: %u threads returned, %u wait", done, waiting);
      for (Fiber& f : b.fibers) f.state = READY;
    } else if (b.turns == turns) {
      fail("threads wait for each other: %u at __syncthreads, %u returned", waiting, done);
    }
  }
}

inline void launch(dim3 grid, dim3 size, const std::function<void()>& kernel) {
  const unsigned n = size.x * size.y * size.z;
  const long blocks = (long)grid.x * grid.y * grid.z;
  if (!n || n > 1024 || !blocks || grid.y > 65535 || grid.z > 65535) fail("bad launch of %u blocks of %u threads", (unsigned)blocks, n);
  const char* order = getenv("DRED_SHIM_REVERSE");
  const bool reverse = order && *order == '1';
#pragma omp parallel
  {
    Block b;
    b.size = size;
    b.grid = grid;
    b.fibers.resize(n);
    b.warps.resize((n + 31) / 32);
    char* arena = (char*)mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) fail("no memory for the stacks of %u threads", n);
    for (unsigned t = 0; t < n; t++) {
      b.fibers[t].stack = arena + t * STACK;
      mprotect(b.fibers[t].stack, GUARD, PROT_NONE);
    }
#pragma omp for schedule(dynamic, 1)
    for (long k = 0; k < blocks; k++) {
      b.index = dim3(k % grid.x, k / grid.x % grid.y, k / ((long)grid.x * grid.y));
      run_block(b, kernel, reverse);
    }
    munmap(arena, n * STACK);
  }
}

inline dim3 thread_index() {
  const unsigned t = B->current->thread;
  return dim3(t % B->size.x, t / B->size.x % B->size.y, t / (B->size.x * B->size.y));
}

}  // namespace dred_shim

#define threadIdx (dred_shim::thread_index())
#define blockIdx (dred_shim::B->index)
#define blockDim (dred_shim::B->size)
#define gridDim (dred_shim::B->grid)
#define __syncthreads() dred_shim::sync()
#define __syncwarp(...) dred_shim::warp_barrier()
#define __shfl_sync(mask, v, lane, ...) dred_shim::shuffle(v, (int)(lane))
#define __shfl_xor_sync(mask, v, bits, ...) dred_shim::shuffle(v, (int)(threadIdx.x % 32 ^ (bits)))
#define __shfl_down_sync(mask, v, by, ...) dred_shim::shuffle(v, (int)(std::min(threadIdx.x % 32 + (by), 31u)))
