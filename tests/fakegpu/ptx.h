// PTX, NVIDIA's assembler, as a program for the interpreter of lanes.cpp.
//
// All threads of a block run together: a register is an array with a number for each of them, an
// instruction a loop over these. Constants, addresses and %tid are such arrays as well, so that an
// instruction has one kind of operand only.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct Block;
struct Ins;
using Op = void (*)(Block&, const Ins&);

struct Ins {
    Op op = nullptr;
    int r[14] = {};      // operands, as places in the register file; what is written comes first
    int count = 0;       // how many of them there are
    int guard = -1;      // a predicate's place: the instruction is for those threads where it holds
    bool unless = false; // or where it does not
    int target = -1;     // of a branch
    int64_t offset = 0;  // of an address,
    bool wide_address = false;  // which lies in a register of 8 bytes
    bool wide_value = false;    // a number of fewer bytes in a register of 8
    int mode = 0;        // of a shuffle, a comparison: which one
    enum { PLAIN, BRANCH, BARRIER, EXIT } kind = PLAIN;
    std::string text;
};

struct Parameter { int offset, size; };

struct Kernel {
    std::string name;
    std::vector<Ins> code;
    std::vector<Parameter> parameters;
    int parameter_bytes = 0, shared_bytes = 0, local_bytes = 0;
    int threads = 1024;  // the largest block it is compiled for
    int places = 0;      // in the register file, each of 4 bytes a thread
    struct Constant { int place; bool wide; uint64_t value; };
    std::vector<Constant> constants;
    struct Special { int place; std::string name; bool wide; };
    std::vector<Special> specials;  // %tid.x, and where local memory, parameters, shared memory are
};

struct Module {
    std::map<std::string, Kernel> kernels;
    std::map<std::string, std::vector<uint8_t>> variables;  // in device memory, by name
};

Module* parse(const std::string& ptx);  // throws std::runtime_error: an instruction it knows not

// lanes.cpp
Op find(const std::vector<std::string>& words, Ins& ins);  // the loop for an opcode in its parts
struct Launch { unsigned grid[3], block[3], dynamic; int device; std::vector<uint8_t> parameters; };
std::string run(const Kernel& kernel, const Launch& launch);  // "", or what went wrong

// device.cpp
struct Allocation { uintptr_t start; size_t size; int device; std::vector<uint64_t> writers; };
Allocation* allocation(uintptr_t address);  // the one that holds this address, or null
