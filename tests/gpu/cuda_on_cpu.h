// Runs CUDA C++ on an x86-64 CPU: a fiber for every thread of a block, block after block.
//
// It knows what the kernels of minicnn use (barriers, static shared memory and the tensor cores'
// `mma`; no atomics) and it is strict where a GPU is not: the order in which threads run between
// two barriers is a parameter, shared memory holds NaNs until it is written, a barrier that only
// some threads reach is an error, and a warp that has met for an `mma` runs far ahead of the others.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <utility>
#include <vector>

struct uint3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
#define __global__ static
#define __device__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
static uint3 threadIdx, blockIdx, blockDim, gridDim;
using std::max;
using std::min;

namespace cpu {
enum State { READY, AT_WARP, AT_BARRIER, DONE };
struct Fiber { void* stack_pointer; uint3 thread; State state; int line; };

static const size_t STACK = 64 * 1024;
static std::vector<Fiber> fibers;
static Fiber* current;
static void* scheduler;        // the stack pointer of `launch`
static char* stacks;
static size_t stack_count;
static char error[256];
static void (*kernel)(void**);
static void** arguments;
static std::map<void*, uint64_t> shared_since;  // the block that a shared array was cleared for
static uint64_t block_number;

extern "C" void cpu_switch(void** save, void* load);
asm(R"(.text
.p2align 4
.type cpu_switch,@function
.hidden cpu_switch
.globl cpu_switch
cpu_switch:
 push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
 mov %rsp,(%rdi); mov %rsi,%rsp
 pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
 ret
.size cpu_switch,.-cpu_switch)");

static void leave(State state, int line) {
    Fiber* self = current;
    self->state = state;
    self->line = line;
    cpu_switch(&self->stack_pointer, scheduler);
    threadIdx = self->thread;
}

static void entry() {
    kernel(arguments);
    leave(DONE, 0);
    std::abort();
}

static void* fresh_stack(size_t i) {
    auto* top = (void**)(stacks + (i + 1) * STACK);
    *--top = nullptr;  // the return address of `entry`, which never returns
    *--top = (void*)entry;
    for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
    return top;
}

// Called where a shared array is declared: the block's first thread there finds NaNs.
static void clear_shared(void* array, size_t bytes) {
    if (std::exchange(shared_since[array], block_number) != block_number) memset(array, 0xff, bytes);
}

// Lets the first warp go on of which all threads have met at one `mma`; whether there is one.
static bool release_a_warp() {
    for (size_t warp = 0; warp + 32 <= fibers.size(); warp += 32) {
        const auto lane = fibers.begin() + warp;
        if (!std::all_of(lane, lane + 32, [&](Fiber& f) {
                return f.state == AT_WARP && f.line == lane->line; })) continue;
        std::for_each(lane, lane + 32, [](Fiber& f) { f.state = READY; });
        return true;
    }
    return false;
}

static bool run_block(const std::vector<unsigned>& order) {
    for (size_t i = 0; i < fibers.size(); ++i) {
        fibers[i].state = READY;
        fibers[i].stack_pointer = fresh_stack(i);
    }
    for (;;) {
        for (unsigned i : order) {
            if (fibers[i].state != READY) continue;
            current = &fibers[i];
            threadIdx = current->thread;
            cpu_switch(&scheduler, current->stack_pointer);
        }
        if (*error) return false;
        if (release_a_warp()) continue;
        size_t done = 0;
        int line = 0;
        for (auto& fiber : fibers) {
            done += fiber.state == DONE;
            if (fiber.state == DONE) continue;
            if (fiber.state == AT_WARP)
                return snprintf(error, sizeof error, "mma reached by a part of the warp"), false;
            fiber.state = READY;
            if (line && line != fiber.line)
                return snprintf(error, sizeof error, "threads met at different barriers"), false;
            line = fiber.line;
        }
        if (done == fibers.size()) return true;
        if (done) return snprintf(error, sizeof error, "barrier reached by a part of the block"), false;
    }
}

template <class... A, size_t... I>
static void call(void (*k)(A...), void** p, std::index_sequence<I...>) { k(*(A*)p[I]...); }
template <class... A>
static void call(void (*k)(A...), void** p) { call(k, p, std::index_sequence_for<A...>{}); }

// order: 0 forward, 1 backward, from 2 on shuffled with that seed. Returns whether all went well.
static bool launch(void (*k)(void**), const unsigned* g, const unsigned* b, void** a, int order) {
    const size_t threads = (size_t)b[0] * b[1] * b[2];
    if (!threads || threads > 1024 || b[2] > 64 || !g[0] || !g[1] || !g[2] || g[0] > 0x7fffffffu ||
        g[1] > 65535 || g[2] > 65535)
        return snprintf(error, sizeof error, "invalid launch: grid %u %u %u, block %u %u %u",
                        g[0], g[1], g[2], b[0], b[1], b[2]), false;
    *error = 0;
    kernel = k;
    arguments = a;
    gridDim = {g[0], g[1], g[2]};
    blockDim = {b[0], b[1], b[2]};
    if (threads > stack_count) {
        free(stacks);
        stacks = (char*)aligned_alloc(64, threads * STACK);
        stack_count = threads;
    }
    fibers.resize(threads);
    std::vector<unsigned> turns(threads);
    for (unsigned i = 0; i < threads; ++i) {
        turns[i] = i;
        fibers[i].thread = {i % b[0], i / b[0] % b[1], i / (b[0] * b[1])};
    }
    if (order == 1) std::reverse(turns.begin(), turns.end());
    if (order > 1) std::shuffle(turns.begin(), turns.end(), std::mt19937(order));
    for (unsigned z = 0; z < g[2]; ++z)
        for (unsigned y = 0; y < g[1]; ++y)
            for (unsigned x = 0; x < g[0]; ++x) {
                blockIdx = {x, y, z};
                ++block_number;
                if (!run_block(turns)) return false;
            }
    return true;
}

struct Fragments { float a[4], b[2]; };
static Fragments deposited[2][1024];  // two sets: a thread is at most one `mma` ahead of its warp
static unsigned long long taken[1024];
}  // namespace cpu

// The two instructions of conv_tf32.cu. A number that was not rounded is an error.
static float to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = std::isnan(x) ? 0x7fffffff : (bits + 0x1000) & ~0x1fffu;
    memcpy(&x, &bits, 4);
    return x;
}

static void mma(float& c0, float& c1, float& c2, float& c3, const float (&a)[4], const float (&b)[2]) {
    const unsigned thread = threadIdx.x, lane = thread % 32, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 6; ++i) {
        const float v = i < 4 ? a[i] : b[i - 4];
        if (!std::isnan(v) && to_tf32(v) != v)
            snprintf(cpu::error, sizeof cpu::error, "mma of a number that is not TF32");
    }
    cpu::Fragments* set = cpu::deposited[cpu::taken[thread]++ % 2];
    set[thread] = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    cpu::leave(cpu::AT_WARP, __LINE__);
    const cpu::Fragments* warp = set + (thread - lane);
    const auto left = [&](int row, int k) { return warp[row % 8 * 4 + k % 4].a[row / 8 + k / 4 * 2]; };
    const auto right = [&](int k, int col) { return warp[col * 4 + k % 4].b[k / 4]; };
    float* const sums[4] = {&c0, &c1, &c2, &c3};
    for (int i = 0; i < 4; ++i) {
        double sum = *sums[i];
        for (int k = 0; k < 8; ++k) sum += (double)left(g + i / 2 * 8, k) * right(k, 2 * t + i % 2);
        *sums[i] = (float)sum;
    }
}

#define __syncthreads() cpu::leave(cpu::AT_BARRIER, __LINE__)
extern "C" const char* last_error() { return cpu::error; }
