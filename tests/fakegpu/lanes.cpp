// Runs a kernel: each instruction for all threads of a block at once, threads that have parted ways
// one group after the other, the one that is furthest behind first.
//
// What a GPU leaves undefined ends the launch here: memory outside of an allocation or off its
// alignment, a barrier that part of the block reaches, two threads at one place of memory with no
// barrier between them.
#include "ptx.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <unordered_map>
#include <xmmintrin.h>

struct Fault : std::runtime_error { using std::runtime_error::runtime_error; };

struct Block {
    const Kernel& kernel;
    const Launch& launch;
    int threads, stride;              // of the block; from a place in the file to the next
    std::vector<uint32_t> file;
    std::vector<uint8_t> local, shared;
    struct Seen { uint32_t epoch = 0; int writer = -1, reader = -1; uint32_t read_epoch = 0; };
    std::vector<Seen> seen;           // of each 4 bytes of shared memory
    uint32_t epoch = 1;               // barriers passed
    uint64_t number = 0, launch_number = 0;  // of the block, of the launch
    std::vector<int> active;          // the threads an instruction is for
    bool full = true;                 // all of them
    Allocation* last = nullptr;       // that an access was to

    uint32_t* at(int place) { return file.data() + (size_t)place * stride; }
    template <class F> void each(F f) {
        if (full) {
            #pragma GCC ivdep
            for (int t = 0; t < threads; ++t) f(t);
        } else {
            for (int t : active) f(t);
        }
    }
};

namespace {

// Numbers of 4 bytes or fewer lie in 4 bytes, those of 8 in 8.
template <class T> struct Row {
    using Stored = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    Stored* p;
    Row(Block& b, int place) : p((Stored*)b.at(place)) {}
    T get(int t) const {
        T v;
        const Stored s = p[t];
        memcpy(&v, &s, sizeof v);
        return v;
    }
    void set(int t, T v) {
        if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) p[t] = (Stored)(std::make_signed_t<Stored>)v;
        else { Stored s = 0; memcpy(&s, &v, sizeof v); p[t] = s; }
    }
};

template <class T> T not_a_number() { return std::numeric_limits<T>::quiet_NaN(); }
template <class T> T saturate(T x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

// ---------------------------------------------------------------------------- arithmetic

#define UNARY(NAME, EXPR)                                                            \
    template <class T> void NAME(Block& b, const Ins& i) {                           \
        Row<T> d(b, i.r[0]), x_(b, i.r[1]);                                          \
        b.each([=](int t) mutable { const T x = x_.get(t); d.set(t, (T)(EXPR)); });  \
    }
#define BINARY(NAME, EXPR)                                                                              \
    template <class T> void NAME(Block& b, const Ins& i) {                                              \
        Row<T> d(b, i.r[0]), x_(b, i.r[1]), y_(b, i.r[2]);                                              \
        b.each([=](int t) mutable { const T x = x_.get(t), y = y_.get(t); d.set(t, (T)(EXPR)); });      \
    }
#define TERNARY(NAME, EXPR)                                                                                       \
    template <class T> void NAME(Block& b, const Ins& i) {                                                        \
        Row<T> d(b, i.r[0]), x_(b, i.r[1]), y_(b, i.r[2]), z_(b, i.r[3]);                                         \
        b.each([=](int t) mutable { const T x = x_.get(t), y = y_.get(t), z = z_.get(t); d.set(t, (T)(EXPR)); }); \
    }
template <class T> using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
BINARY(add, x + y)
BINARY(sub, x - y)
BINARY(mul, x * y)
BINARY(add_whole, (Bits<T>)x + (Bits<T>)y)
BINARY(sub_whole, (Bits<T>)x - (Bits<T>)y)
BINARY(mul_whole, (Bits<T>)x * (Bits<T>)y)
TERNARY(mad_whole, (Bits<T>)x * (Bits<T>)y + (Bits<T>)z)
TERNARY(fused, std::fma(x, y, z))
BINARY(divide, x / y)
BINARY(divide_whole, y ? x / y : (T)-1)
BINARY(remainder_, y ? x % y : x)
BINARY(smaller, x < y ? x : y)
BINARY(larger, x > y ? x : y)
BINARY(smaller_f, std::fmin(x, y))
BINARY(larger_f, std::fmax(x, y))
BINARY(smaller_nan, x != x || y != y ? not_a_number<T>() : std::fmin(x, y))
BINARY(larger_nan, x != x || y != y ? not_a_number<T>() : std::fmax(x, y))
UNARY(negate, -x)
UNARY(negate_whole, 0 - (Bits<T>)x)
UNARY(absolute, std::fabs(x))
UNARY(absolute_whole, x < 0 ? 0 - (Bits<T>)x : x)
UNARY(root, std::sqrt(x))
UNARY(inverse_root, 1 / std::sqrt(x))
UNARY(inverse, 1 / x)
UNARY(power_of_2, std::exp2(x))
UNARY(log_2, std::log2(x))
UNARY(sine, std::sin(x))
UNARY(cosine, std::cos(x))
UNARY(tangent_h, std::tanh(x))
UNARY(clamp, saturate(x))
BINARY(sign_of, std::copysign(y, x))
BINARY(both, x & y)
BINARY(either, x | y)
BINARY(differ, x ^ y)
UNARY(invert, ~x)
UNARY(copy, x)
UNARY(bit_count, __builtin_popcountll(x))
UNARY(leading, x ? __builtin_clzll(x) - (64 - 8 * (int)sizeof(T)) : 8 * (int)sizeof(T))

template <class T> void negate_predicate(Block& b, const Ins& i) {
    Row<T> d(b, i.r[0]), x(b, i.r[1]);
    b.each([=](int t) mutable { d.set(t, !x.get(t)); });
}

template <class T> void shift_left(Block& b, const Ins& i) {
    Row<T> d(b, i.r[0]), x(b, i.r[1]);
    Row<uint32_t> by(b, i.r[2]);
    b.each([=](int t) mutable {
        const uint32_t n = by.get(t);
        d.set(t, n >= 8 * sizeof(T) ? 0 : (T)((Bits<T>)x.get(t) << n));
    });
}

template <class T> void shift_right(Block& b, const Ins& i) {
    Row<T> d(b, i.r[0]), x(b, i.r[1]);
    Row<uint32_t> by(b, i.r[2]);
    b.each([=](int t) mutable {
        const uint32_t n = by.get(t), most = 8 * sizeof(T) - 1;
        d.set(t, n > most ? (std::is_signed_v<T> ? (T)(x.get(t) >> most) : (T)0) : (T)(x.get(t) >> n));
    });
}

template <class T> struct Twice;
template <> struct Twice<int16_t> { using type = int32_t; };
template <> struct Twice<uint16_t> { using type = uint32_t; };
template <> struct Twice<int32_t> { using type = int64_t; };
template <> struct Twice<uint32_t> { using type = uint64_t; };
template <> struct Twice<int64_t> { using type = __int128; };
template <> struct Twice<uint64_t> { using type = unsigned __int128; };

template <class T> void wide(Block& b, const Ins& i) {  // and with a fourth operand, that added
    using W = typename Twice<T>::type;
    if constexpr (sizeof(W) <= 8) {
        Row<W> d(b, i.r[0]), z(b, i.r[i.count == 4 ? 3 : 0]);
        Row<T> x(b, i.r[1]), y(b, i.r[2]);
        const bool more = i.count == 4;
        b.each([=](int t) mutable { d.set(t, (W)x.get(t) * (W)y.get(t) + (more ? z.get(t) : (W)0)); });
    }
}

template <class T> void high(Block& b, const Ins& i) {
    using W = typename Twice<T>::type;
    Row<T> d(b, i.r[0]), x(b, i.r[1]), y(b, i.r[2]), z(b, i.r[i.count == 4 ? 3 : 1]);
    const bool more = i.count == 4;
    b.each([=](int t) mutable {
        d.set(t, (T)((T)((W)x.get(t) * (W)y.get(t) >> 8 * sizeof(T)) + (more ? z.get(t) : (T)0)));
    });
}

template <class T> void select(Block& b, const Ins& i) {
    Row<T> d(b, i.r[0]), x(b, i.r[1]), y(b, i.r[2]);
    Row<uint32_t> p(b, i.r[3]);
    b.each([=](int t) mutable { d.set(t, p.get(t) ? x.get(t) : y.get(t)); });
}

enum Compare { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NANS };
const char* COMPARE[] = {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

template <class T> bool compare(int how, T x, T y) {
    const bool none = x != x || y != y;
    switch (how) {
        case EQ: return x == y;
        case NE: return !none && x != y;
        case LT: return x < y;
        case LE: return x <= y;
        case GT: return x > y;
        case GE: return x >= y;
        case NUM: return !none;
        case NANS: return none;
        default: return none || compare(how - EQU, x, y);
    }
}

template <class T, int HOW> void set_predicate(Block& b, const Ins& i) {
    const bool two = i.mode >> 17 & 1, inverted = i.mode >> 16 & 1;
    const int at = two ? 2 : 1, combine = i.mode & 3;
    Row<uint32_t> d(b, i.r[0]), e(b, i.r[two ? 1 : 0]), p(b, i.r[combine ? at + 2 : 0]);
    Row<T> x(b, i.r[at]), y(b, i.r[at + 1]);
    b.each([=](int t) mutable {
        bool v = compare<T>(HOW, x.get(t), y.get(t));
        if (combine) {
            const bool other = (p.get(t) != 0) != inverted;
            v = combine == 1 ? v && other : combine == 2 ? v || other : v != other;
        }
        if (two) e.set(t, !v);
        d.set(t, v);
    });
}

template <class T, int... HOW> Op with_comparison(int how, std::integer_sequence<int, HOW...>) {
    static const Op table[] = {set_predicate<T, HOW>...};
    return table[how];
}

template <class T> void test(Block& b, const Ins& i) {  // testp
    Row<uint32_t> d(b, i.r[0]);
    Row<T> x(b, i.r[1]);
    const int how = i.mode & 3;
    b.each([=](int t) mutable {
        const T v = x.get(t);
        d.set(t, how == 0 ? std::isinf(v) : how == 1 ? std::isfinite(v) : how == 2 ? !std::isnan(v) : std::isnan(v));
    });
}

template <class D, class S> D to(S x, int rounding) {
    if constexpr (std::is_floating_point_v<S>) {
        double v = x;
        if (rounding) v = rounding == 1 ? std::rint(v) : rounding == 2 ? std::trunc(v) : rounding == 3 ? std::floor(v) : std::ceil(v);
        if constexpr (std::is_floating_point_v<D>) return rounding ? (D)v : (D)x;
        else {
            if (!rounding) v = std::trunc(v);
            if (std::isnan(v)) return sizeof(D) == 8 ? (D)((uint64_t)1 << 63) : 0;
            if (v < (double)std::numeric_limits<D>::min()) return std::numeric_limits<D>::min();
            if (v >= (double)std::numeric_limits<D>::max()) return std::numeric_limits<D>::max();
            return (D)v;
        }
    } else return (D)x;
}

template <class D, class S> void convert(Block& b, const Ins& i) {
    Row<D> d(b, i.r[0]);
    Row<S> x(b, i.r[1]);
    if constexpr (std::is_integral_v<S>)
        if (i.wide_value) {
            Row<uint64_t> wide(b, i.r[1]);
            b.each([=](int t) mutable { d.set(t, to<D, S>((S)wide.get(t), 0)); });
            return;
        }
    const int rounding = i.mode & 7;
    const bool sat = i.mode & 8;
    b.each([=](int t) mutable {
        D v = to<D, S>(x.get(t), rounding);
        if constexpr (std::is_floating_point_v<D>) if (sat) v = saturate(v);
        d.set(t, v);
    });
}

void to_tf32(Block& b, const Ins& i) {
    Row<uint32_t> d(b, i.r[0]), x(b, i.r[1]);
    b.each([=](int t) mutable { d.set(t, (x.get(t) + 0x1000u) & 0xffffe000u); });
}

// mov.b64 {a, b}, c and its reverse.
template <class T, class Part> void unpack(Block& b, const Ins& i) {
    Row<T> x(b, i.r[i.count - 1]);
    for (int p = 0; p + 1 < i.count; ++p) {
        Row<Part> d(b, i.r[p]);
        b.each([=](int t) mutable { d.set(t, (Part)((uint64_t)x.get(t) >> 8 * sizeof(Part) * p)); });
    }
}
template <class T, class Part> void pack(Block& b, const Ins& i) {
    Row<T> d(b, i.r[0]);
    std::vector<uint64_t> v(b.threads);
    for (int p = 1; p < i.count; ++p) {
        Row<Part> x(b, i.r[p]);
        b.each([&, x](int t) { v[t] |= (uint64_t)x.get(t) << 8 * sizeof(Part) * (p - 1); });
    }
    b.each([&, d](int t) mutable { d.set(t, (T)v[t]); });
}

void shared_address(Block& b, const Ins& i) {  // cvta.shared
    Row<uint64_t> d(b, i.r[0]), x(b, i.r[1]);
    Row<uint32_t> narrow(b, i.r[1]);
    const auto base = (uint64_t)(uintptr_t)b.shared.data();
    b.each([=](int t) mutable { d.set(t, base + narrow.get(t)); });
}

void nothing(Block&, const Ins&) {}

// ---------------------------------------------------------------------------- memory

[[noreturn]] void fault(Block& b, const Ins& i, int t, const std::string& what) {
    throw Fault(b.kernel.name + ": " + what + " by thread " + std::to_string(t) + " of block " +
                std::to_string(b.number) + ": " + i.text);
}

bool inside(const std::vector<uint8_t>& memory, uintptr_t address, int size) {
    const auto start = (uintptr_t)memory.data();
    return address >= start && address + size <= start + memory.size();
}

uint8_t* global(Block& b, const Ins& i, int t, uintptr_t address, int size, bool writes) {
    if (address % size) fault(b, i, t, "misaligned");
    Allocation* a = b.last;
    if (!a || address < a->start || address + size > a->start + a->size) {
        a = allocation(address);
        if (!a || address + size > a->start + a->size) {
            if (inside(b.local, address, size) || inside(b.shared, address, size) ||
                inside(b.launch.parameters, address, size)) return (uint8_t*)address;
            fault(b, i, t, "out of bounds");
        }
        if (a->device != b.launch.device && a->device >= 0) fault(b, i, t, "memory of another GPU");
        b.last = a;
    }
    // Who wrote here last in this launch: another block, and the order of the two is nobody's.
    if (a->writers.empty()) {
        if (!writes) return (uint8_t*)address;
        a->writers.assign((a->size + 3) / 4, 0);
    }
    const uint64_t mine = b.launch_number << 32 | (uint32_t)b.number;
    for (uintptr_t word = (address - a->start) / 4, end = (address - a->start + size + 3) / 4; word < end; ++word) {
        uint64_t& writer = a->writers[word];
        if (writer >> 32 == b.launch_number && writer != mine && size >= 4)
            fault(b, i, t, writes ? "race in global memory, write" : "race in global memory, read");
        if (writes) writer = mine;
    }
    return (uint8_t*)address;
}

uint8_t* in_shared(Block& b, const Ins& i, int t, uint32_t at, int size, bool writes) {
    if (at % size) fault(b, i, t, "misaligned in shared memory");
    if ((size_t)at + size > b.shared.size()) fault(b, i, t, "out of bounds of shared memory");
    for (uint32_t word = at / 4; size >= 4 && word < (at + size) / 4; ++word) {  // bytes share a word
        auto& s = b.seen[word];
        if (s.epoch == b.epoch && s.writer != t) fault(b, i, t, writes ? "race in shared memory, write" : "race in shared memory, read");
        if (writes) {
            if (s.read_epoch == b.epoch && s.reader != t) fault(b, i, t, "race in shared memory, write");
            s.epoch = b.epoch;
            s.writer = t;
        } else {
            s.reader = s.read_epoch == b.epoch && s.reader != t ? -2 : t;
            s.read_epoch = b.epoch;
        }
    }
    return b.shared.data() + at;
}

enum Space { GLOBAL, SHARED, PARAM };

template <class T, int SPACE> uint8_t* pointer(Block& b, const Ins& i, int t, int n, bool writes) {
    const int size = n * (int)sizeof(T);
    const uint64_t base = i.wide_address ? Row<uint64_t>(b, i.r[0]).get(t) : Row<uint32_t>(b, i.r[0]).get(t);
    const auto address = (uintptr_t)(base + i.offset);
    if constexpr (SPACE == SHARED) return in_shared(b, i, t, (uint32_t)address, size, writes);
    if constexpr (SPACE == PARAM) {
        if (!inside(b.launch.parameters, address, size)) fault(b, i, t, "out of bounds of the parameters");
        return (uint8_t*)address;
    }
    return global(b, i, t, address, size, writes);
}

template <class T, int SPACE> void load(Block& b, const Ins& i) {
    b.each([&](int t) {
        T v[8];
        memcpy(v, pointer<T, SPACE>(b, i, t, i.count - 1, false), sizeof(T) * (i.count - 1));
        for (int n = 1; n < i.count; ++n)
            if (i.wide_value) Row<uint64_t>(b, i.r[n]).set(t, (uint64_t)v[n - 1]);  // extended by its sign
            else Row<T>(b, i.r[n]).set(t, v[n - 1]);
    });
}
template <class T, int SPACE> void store(Block& b, const Ins& i) {
    b.each([&](int t) {
        T v[8];
        for (int n = 1; n < i.count; ++n)
            v[n - 1] = i.wide_value ? (T)Row<uint64_t>(b, i.r[n]).get(t) : Row<T>(b, i.r[n]).get(t);
        memcpy(pointer<T, SPACE>(b, i, t, i.count - 1, true), v, sizeof(T) * (i.count - 1));
    });
}

enum Atomic { ADD, MIN, MAX, CAS, EXCH, AND, OR, XOR };
const char* ATOMIC[] = {"add", "min", "max", "cas", "exch", "and", "or", "xor"};

template <class T> void atomic(Block& b, const Ins& i) {
    const int how = i.mode & 7, value = i.mode & 8 ? 2 : 1;  // 8: the old value is wanted, in r[1]
    const bool shared = i.mode & 16;
    b.each([&](int t) {
        const uint64_t base = i.wide_address ? Row<uint64_t>(b, i.r[0]).get(t) : Row<uint32_t>(b, i.r[0]).get(t);
        const auto address = (uintptr_t)(base + i.offset + (shared ? (uintptr_t)b.shared.data() : 0));
        if (!allocation(address) && !inside(b.shared, address, sizeof(T))) fault(b, i, t, "out of bounds");
        T old, x = Row<T>(b, i.r[value]).get(t), now = x;
        memcpy(&old, (void*)address, sizeof old);
        if (how == ADD) now = old + x;
        if (how == MIN) now = std::min(old, x);
        if (how == MAX) now = std::max(old, x);
        if (how == CAS) now = old == x ? Row<T>(b, i.r[value + 1]).get(t) : old;
        if constexpr (std::is_integral_v<T>) {
            if (how == AND) now = old & x;
            if (how == OR) now = old | x;
            if (how == XOR) now = old ^ x;
        }
        memcpy((void*)address, &now, sizeof now);
        if (value == 2) Row<T>(b, i.r[1]).set(t, old);
    });
}

// ---------------------------------------------------------------------------- warps

const int WARP = 32;

// Calls f with the first thread of every warp; all 32 threads must have come.
template <class F> void warps(Block& b, const Ins& i, F f) {
    if (!b.full || b.threads % WARP) {
        std::vector<int> come((b.threads + WARP - 1) / WARP);
        b.each([&](int t) { ++come[t / WARP]; });
        for (size_t w = 0; w < come.size(); ++w) {
            if (come[w] && come[w] < WARP) fault(b, i, (int)w * WARP, "mma reached by a part of the warp");
            if (come[w]) f((int)w * WARP);
        }
    } else {
        for (int w = 0; w < b.threads; w += WARP) f(w);
    }
}

// mma.m16n8k8 of TF32, operands d[4], a[4], b[2], c[4]; the layout is that of the PTX ISA.
void mma(Block& b, const Ins& i) {
    warps(b, i, [&](int first) {
        double left[16][8], right[8][8];
        for (int lane = 0; lane < WARP; ++lane) {
            const int g = lane / 4, t = lane % 4;
            auto factor = [&](int operand) {
                const uint32_t bits = Row<uint32_t>(b, i.r[operand]).get(first + lane);
                float v;
                memcpy(&v, &bits, 4);
                if (bits & 0x1fff && v == v) fault(b, i, first + lane, "mma of a number that is not TF32");
                return (double)v;
            };
            for (int n = 0; n < 4; ++n) left[g + 8 * (n % 2)][t + 4 * (n / 2)] = factor(4 + n);
            for (int n = 0; n < 2; ++n) right[t + 4 * n][g] = factor(8 + n);
        }
        for (int lane = 0; lane < WARP; ++lane)
            for (int n = 0; n < 4; ++n) {
                const int row = lane / 4 + 8 * (n / 2), column = lane % 4 * 2 + n % 2;
                double sum = 0;
                for (int k = 0; k < 8; ++k) sum += left[row][k] * right[k][column];
                Row<float>(b, i.r[n]).set(first + lane, (float)sum + Row<float>(b, i.r[10 + n]).get(first + lane));
            }
    });
}

void shuffle(Block& b, const Ins& i) {
    const bool two = i.mode >> 17 & 1;
    const int at = two ? 2 : 1, how = i.mode & 3;  // down, up, bfly, idx
    std::vector<uint32_t> value(b.threads);
    std::vector<bool> come(b.threads);
    b.each([&](int t) { value[t] = Row<uint32_t>(b, i.r[at]).get(t); come[t] = true; });
    b.each([&](int t) {
        const uint32_t by = Row<uint32_t>(b, i.r[at + 1]).get(t), mask = Row<uint32_t>(b, i.r[at + 2]).get(t);
        const int lane = t % WARP, segment = mask >> 8 & 31, bound = mask & 31;
        const int least = lane & segment, most = least | (bound & ~segment), n = by & 31;
        int from = how == 0 ? lane + n : how == 1 ? lane - n : how == 2 ? lane ^ n : least | (n & ~segment);
        const bool good = how == 1 ? from >= most : from <= most;
        if (!good) from = lane;
        const int thread = t - lane + from;
        if (thread >= b.threads || !come[thread]) fault(b, i, t, "shuffle with a thread that has not come");
        Row<uint32_t>(b, i.r[0]).set(t, value[thread]);
        if (two) Row<uint32_t>(b, i.r[1]).set(t, good);
    });
}

// ---------------------------------------------------------------------------- finding an instruction

template <template <class> class F> Op whole(const std::string& t) {
    static const std::map<std::string, Op> table = {
        {"s16", F<int16_t>::op}, {"u16", F<uint16_t>::op}, {"b16", F<uint16_t>::op}, {"s32", F<int32_t>::op},
        {"u32", F<uint32_t>::op}, {"b32", F<uint32_t>::op}, {"s64", F<int64_t>::op}, {"u64", F<uint64_t>::op},
        {"b64", F<uint64_t>::op}, {"pred", F<uint32_t>::op}};
    const auto at = table.find(t);
    return at == table.end() ? nullptr : at->second;
}
template <template <class> class F> Op real(const std::string& t) {
    return t == "f32" ? F<float>::op : t == "f64" ? F<double>::op : nullptr;
}
template <template <class> class F> Op any(const std::string& t) {
    if (t == "s8") return F<int8_t>::op;
    if (t == "u8" || t == "b8") return F<uint8_t>::op;
    const Op found = real<F>(t);
    return found ? found : whole<F>(t);
}

#define FAMILY(NAME, FUNCTION) template <class T> struct NAME { static constexpr Op op = FUNCTION<T>; };
#define WHOLE(FUNCTION) (whole<FUNCTION##_of>(t))
#define REAL(FUNCTION) (real<FUNCTION##_of>(t))
#define ALL(X) X(add) X(sub) X(mul) X(add_whole) X(sub_whole) X(mul_whole) X(mad_whole) X(fused) X(divide)      \
    X(divide_whole) X(remainder_) X(smaller) X(larger) X(smaller_f) X(larger_f) X(smaller_nan) X(larger_nan)    \
    X(negate) X(negate_whole) X(absolute) X(absolute_whole) X(root) X(inverse_root) X(inverse) X(power_of_2)    \
    X(log_2) X(sine) X(cosine) X(tangent_h) X(clamp) X(sign_of) X(both) X(either) X(differ) X(invert) X(copy)   \
    X(bit_count) X(leading) X(negate_predicate) X(shift_left) X(shift_right) X(wide) X(high) X(select) \
    X(test) X(atomic)
#define DECLARE(NAME) FAMILY(NAME##_of, NAME)
ALL(DECLARE)
template <class T> struct load_global { static constexpr Op op = load<T, GLOBAL>; };
template <class T> struct load_shared { static constexpr Op op = load<T, SHARED>; };
template <class T> struct load_param { static constexpr Op op = load<T, PARAM>; };
template <class T> struct store_global { static constexpr Op op = store<T, GLOBAL>; };
template <class T> struct store_shared { static constexpr Op op = store<T, SHARED>; };

template <class S> Op convert_to(const std::string& t) {
    if (t == "f32") return convert<float, S>;
    if (t == "f64") return convert<double, S>;
    if (t == "s8") return convert<int8_t, S>;
    if (t == "u8") return convert<uint8_t, S>;
    if (t == "s16") return convert<int16_t, S>;
    if (t == "u16") return convert<uint16_t, S>;
    if (t == "s32") return convert<int32_t, S>;
    if (t == "u32") return convert<uint32_t, S>;
    if (t == "s64") return convert<int64_t, S>;
    return convert<uint64_t, S>;
}

template <class T> Op compared(int how) { return with_comparison<T>(how, std::make_integer_sequence<int, NANS + 1>{}); }

int place_of(const std::string& word, const char* const* names, int count) {
    for (int n = 0; n < count; ++n) if (word == names[n]) return n;
    return -1;
}

Op arithmetic(const std::string& what, const std::string& t, bool sat, bool nan) {
    if (t[0] == 'f') {
        if (sat) return nullptr;
        if (what == "add") return REAL(add);
        if (what == "sub") return REAL(sub);
        if (what == "mul") return REAL(mul);
        if (what == "fma" || what == "mad") return REAL(fused);
        if (what == "div") return REAL(divide);
        if (what == "min") return nan ? REAL(smaller_nan) : REAL(smaller_f);
        if (what == "max") return nan ? REAL(larger_nan) : REAL(larger_f);
        if (what == "neg") return REAL(negate);
        if (what == "abs") return REAL(absolute);
        if (what == "sqrt") return REAL(root);
        if (what == "rsqrt") return REAL(inverse_root);
        if (what == "rcp") return REAL(inverse);
        if (what == "ex2") return REAL(power_of_2);
        if (what == "lg2") return REAL(log_2);
        if (what == "sin") return REAL(sine);
        if (what == "cos") return REAL(cosine);
        if (what == "tanh") return REAL(tangent_h);
        if (what == "copysign") return REAL(sign_of);
        return nullptr;
    }
    if (what == "add") return WHOLE(add_whole);
    if (what == "sub") return WHOLE(sub_whole);
    if (what == "mul") return WHOLE(mul_whole);
    if (what == "mad") return WHOLE(mad_whole);
    if (what == "div") return WHOLE(divide_whole);
    if (what == "rem") return WHOLE(remainder_);
    if (what == "min") return WHOLE(smaller);
    if (what == "max") return WHOLE(larger);
    if (what == "and") return WHOLE(both);
    if (what == "or") return WHOLE(either);
    if (what == "xor") return WHOLE(differ);
    if (what == "not") return t == "pred" ? WHOLE(negate_predicate) : WHOLE(invert);
    if (what == "neg") return WHOLE(negate_whole);
    if (what == "abs") return WHOLE(absolute_whole);
    if (what == "shl") return WHOLE(shift_left);
    if (what == "shr") return WHOLE(shift_right);
    if (what == "popc") return WHOLE(bit_count);
    if (what == "clz") return WHOLE(leading);
    return nullptr;
}

}  // namespace

Op find(const std::vector<std::string>& w, Ins& ins) {
    const std::string &what = w[0], &t = w.back();
    auto has = [&](const char* word) { return std::count(w.begin(), w.end(), word) > 0; };
    Op op = nullptr;
    if (ins.kind != Ins::PLAIN) return nothing;
    if (what == "membar" || what == "fence" || what == "bar") op = nothing;
    else if (what == "ld" || what == "ldu") op = has("shared") ? any<load_shared>(t) : has("param") ? any<load_param>(t) : any<load_global>(t);
    else if (what == "st") op = has("shared") ? any<store_shared>(t) : any<store_global>(t);
    else if (what == "atom" || what == "red") {
        for (const auto& word : w)
            if (const int how = place_of(word, ATOMIC, 8); how >= 0) ins.mode = how;
        ins.mode |= (what == "atom" ? 8 : 0) | (has("shared") ? 16 : 0);
        op = any<atomic_of>(t);
    } else if (what == "cvta") {
        if (has("shared") && !has("to")) op = shared_address;
        else op = copy<uint64_t>;
    } else if (what == "mov") {
        const int packed = ins.mode >> 18 & 3, parts = ins.count - 1;
        if (packed == 1) op = t == "b64" ? (parts == 2 ? unpack<uint64_t, uint32_t> : unpack<uint64_t, uint16_t>) : unpack<uint32_t, uint16_t>;
        else if (packed == 2) op = t == "b64" ? (parts == 2 ? pack<uint64_t, uint32_t> : pack<uint64_t, uint16_t>) : pack<uint32_t, uint16_t>;
        else op = any<copy_of>(t);
    } else if (what == "cvt") {
        if (has("tf32")) op = to_tf32;
        else {
            static const char* const rounding[] = {"", "rni", "rzi", "rmi", "rpi"};
            for (const auto& word : w)
                if (const int r = place_of(word, rounding, 5); r > 0) ins.mode |= r;
            if (has("sat")) ins.mode |= 8;
            const std::string& to = w[w.size() - 2];
            op = t == "f32" ? convert_to<float>(to) : t == "f64" ? convert_to<double>(to) : t == "s8" ? convert_to<int8_t>(to)
               : t == "u8" ? convert_to<uint8_t>(to) : t == "s16" ? convert_to<int16_t>(to) : t == "u16" ? convert_to<uint16_t>(to)
               : t == "s32" ? convert_to<int32_t>(to) : t == "u32" ? convert_to<uint32_t>(to) : t == "s64" ? convert_to<int64_t>(to)
               : t == "u64" ? convert_to<uint64_t>(to) : nullptr;
        }
    } else if (what == "setp") {
        std::string how = w[1];
        if (how == "lo" || how == "ls" || how == "hi" || how == "hs") how = how == "lo" ? "lt" : how == "ls" ? "le" : how == "hi" ? "gt" : "ge";
        const int n = place_of(how, COMPARE, NANS + 1);
        ins.mode |= has("and") ? 1 : has("or") ? 2 : has("xor") ? 3 : 0;
        if (n >= 0)
            op = t == "f32" ? compared<float>(n) : t == "f64" ? compared<double>(n) : t == "s32" ? compared<int32_t>(n)
               : t == "u32" || t == "b32" ? compared<uint32_t>(n) : t == "s64" ? compared<int64_t>(n)
               : t == "u64" || t == "b64" ? compared<uint64_t>(n) : t == "s16" ? compared<int16_t>(n)
               : t == "u16" || t == "b16" ? compared<uint16_t>(n) : nullptr;
    } else if (what == "selp") op = any<select_of>(t);
    else if (what == "testp") {
        static const char* const kinds[] = {"infinite", "finite", "number", "notanumber"};
        ins.mode = place_of(w[1], kinds, 4);
        op = real<test_of>(t);
    } else if (what == "mma") op = has("m16n8k8") && has("tf32") ? mma : nullptr;
    else if (what == "shfl") {
        static const char* const kinds[] = {"down", "up", "bfly", "idx"};
        ins.mode |= place_of(w[2], kinds, 4);
        op = shuffle;
    } else if (has("wide")) op = whole<wide_of>(t);
    else if (has("hi")) op = whole<high_of>(t);
    else op = arithmetic(what, t, has("sat"), has("NaN"));
    if (!op) throw std::runtime_error("unknown instruction: " + ins.text);
    return op;
}

// ---------------------------------------------------------------------------- running

namespace {

uint64_t special(const Block& b, const std::string& name, int t) {
    const auto &g = b.launch.grid, &n = b.launch.block;
    const int axis = name.back() - 'x';
    auto starts = [&](const char* with) { return name.rfind(with, 0) == 0; };
    if (starts("local+")) return (uint64_t)(uintptr_t)b.local.data() + (size_t)t * b.kernel.local_bytes + std::stoi(name.substr(6));
    if (starts("param+")) return (uint64_t)(uintptr_t)b.launch.parameters.data() + std::stoi(name.substr(6));
    if (name == "%laneid") return t % WARP;
    if (starts("%tid")) return axis == 0 ? t % n[0] : axis == 1 ? t / n[0] % n[1] : t / n[0] / n[1];
    if (starts("%ntid")) return n[axis];
    if (starts("%nctaid")) return g[axis];
    return axis == 0 ? b.number % g[0] : axis == 1 ? b.number / g[0] % g[1] : b.number / g[0] / g[1];
}

// The operands that no instruction writes: for the whole launch, or those that are of one block.
void fill(Block& b, bool of_block) {
    auto put = [&](int place, bool wide, int t, uint64_t value) {
        if (wide) Row<uint64_t>(b, place).p[t] = value;
        else Row<uint32_t>(b, place).p[t] = (uint32_t)value;
    };
    if (!of_block)
        for (const auto& c : b.kernel.constants)
            for (int t = 0; t < b.threads; ++t) put(c.place, c.wide, t, c.value);
    for (const auto& s : b.kernel.specials) {
        const bool same = s.name.rfind("%ctaid", 0) == 0;
        if (same != of_block) continue;
        const uint64_t value = special(b, s.name, 0);
        for (int t = 0; t < b.threads; ++t) put(s.place, s.wide, t, same ? value : special(b, s.name, t));
    }
}

// The threads at hand for which an instruction's guard holds; whether it is all of them.
bool guarded(Block& b, const Ins& i, std::vector<int>& held) {
    held.clear();
    Row<uint32_t> p(b, i.guard);
    b.each([&](int t) { if ((p.get(t) != 0) != i.unless) held.push_back(t); });
    return held.size() == (b.full ? (size_t)b.threads : b.active.size());
}

void run_block(Block& b) {
    const Kernel& k = b.kernel;
    const int GONE = 1 << 30;
    std::vector<int> pc(b.threads, 0), held, everyone(b.threads);
    std::vector<char> waits(b.threads, 0);
    std::iota(everyone.begin(), everyone.end(), 0);
    for (;;) {
        // The group that is furthest behind, and where the next one is.
        int now = GONE, next = GONE, waiting = 0, gone = 0;
        for (int t = 0; t < b.threads; ++t) {
            if (waits[t]) { ++waiting; continue; }
            if (pc[t] == GONE) { ++gone; continue; }
            if (pc[t] < now) { next = now; now = pc[t]; }
            else if (pc[t] > now && pc[t] < next) next = pc[t];
        }
        if (now == GONE) {
            if (!waiting) return;
            int where = -1;
            for (int t = 0; t < b.threads; ++t) {
                if (waits[t] && where < 0) where = pc[t];
                if (gone || (waits[t] && pc[t] != where)) fault(b, k.code[where - 1], t, "barrier reached by a part of the block");
            }
            std::fill(waits.begin(), waits.end(), 0);
            ++b.epoch;
            continue;
        }
        b.active.clear();
        for (int t = 0; t < b.threads; ++t) if (!waits[t] && pc[t] == now) b.active.push_back(t);
        b.full = (int)b.active.size() == b.threads;
        const bool alone = b.full;
        const std::vector<int> group = b.active;
        auto move = [&](const std::vector<int>& threads, int to) { for (int t : threads) pc[t] = to; };
        int at = now;
        for (;; ++at) {
            if (at >= next) { move(group, at); break; }
            const Ins& i = k.code[at];
            bool all = true;
            if (i.guard >= 0) {
                all = guarded(b, i, held);
                if (held.empty()) continue;
            }
            const std::vector<int>& those = all ? group : held;
            if (i.kind == Ins::PLAIN) {
                if (!all) { b.active = held; b.full = false; }
                i.op(b, i);
                if (!all) { b.active = group; b.full = alone; }
            } else if (i.kind == Ins::BRANCH && all && alone) {
                at = i.target - 1;
            } else {
                move(group, at + 1);
                if (i.kind == Ins::BRANCH) move(those, i.target);
                if (i.kind == Ins::EXIT) move(those, GONE);
                if (i.kind == Ins::BARRIER) for (int t : those) waits[t] = 1;
                break;
            }
        }
    }
}

}  // namespace

std::string run(const Kernel& kernel, const Launch& launch) {
    static uint64_t launches = 0;
    const int threads = launch.block[0] * launch.block[1] * launch.block[2];
    Block b{kernel, launch, threads, (threads + 15) / 16 * 16, {}, {}, {}, {}};
    b.file.resize((size_t)kernel.places * b.stride + 16);
    b.local.resize((size_t)kernel.local_bytes * threads);
    b.shared.resize((kernel.shared_bytes + 15) / 16 * 16 + launch.dynamic);
    b.seen.resize(b.shared.size() / 4 + 1);
    b.launch_number = ++launches;
    const unsigned rounding = _mm_getcsr();
    _mm_setcsr(rounding | 0x8040 | 0x1f80);  // denormals are 0, as with CuPy's -ftz=true
    std::string wrong;
    try {
        const uint64_t blocks = (uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2];
        fill(b, false);
        for (b.number = 0; b.number < blocks; ++b.number) {
            std::fill(b.shared.begin(), b.shared.end(), 0xff);  // it holds nothing: NaNs
            ++b.epoch;
            fill(b, true);
            run_block(b);
        }
    } catch (const Fault& f) { wrong = f.what(); }
    _mm_setcsr(rounding);
    return wrong;
}
