// Prints the 64 bytes that `ldtilecfg` reads when the kernels configure the tile unit, also where there is none: the
// instruction then raises SIGILL, and the handler reads its operand. Built by test_tile_config.py with each compiler.
//
//   tile_config_probe            one line per (format, rows): "<group> <rows> <128 hex digits>"
//   tile_config_probe control    the same from a shape filled on the stack for the compiler's intrinsic
#include <immintrin.h>
#include <ucontext.h>

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "isa/amx/matmul.cpp"

namespace {

sigjmp_buf resume;
alignas(64) unsigned char seen[64];

long long general_register(const greg_t* registers, int number) {
    static const int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers[kOrder[number]];
}

// Address of the memory operand of `ldtilecfg` (VEX.128.NP.0F38.W0 49 /0) at the faulting instruction; null: another one.
const unsigned char* operand(const greg_t* registers) {
    const auto* code = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
    if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x7f) != 0x78 || code[3] != 0x49) return nullptr;
    const int extend_base = code[1] & 0x20 ? 0 : 8, extend_index = code[1] & 0x40 ? 0 : 8;
    const int mode = code[4] >> 6, rm = code[4] & 7;
    const unsigned char* next = code + 5;
    long long address = 0;
    if (rm == 4) {
        const int scale = *next >> 6, index = (*next >> 3 & 7) + extend_index, base = (*next & 7) + extend_base;
        ++next;
        if (index != 4) address += general_register(registers, index) << scale;
        if ((base & 7) != 5 || mode != 0) address += general_register(registers, base);
    } else if (!(mode == 0 && rm == 5)) {
        address = general_register(registers, rm + extend_base);
    }
    if (mode == 1) return reinterpret_cast<const unsigned char*>(address + static_cast<signed char>(*next));
    int displacement = 0;
    if (mode == 2 || (mode == 0 && rm == 5)) {
        std::memcpy(&displacement, next, 4);
        next += 4;
    }
    if (mode == 0 && rm == 5) address = reinterpret_cast<long long>(next);
    return reinterpret_cast<const unsigned char*>(address + displacement);
}

void on_fault(int, siginfo_t*, void* context) {
    const unsigned char* from = operand(static_cast<ucontext_t*>(context)->uc_mcontext.gregs);
    if (from == nullptr) std::_Exit(3);
    std::memcpy(seen, from, sizeof seen);
    siglongjmp(resume, 1);
}

// The usual way, and the trap: the shape is filled at run time, and the intrinsic decides what the compiler knows of it.
__attribute__((noinline)) void control(int group, int rows) {
    headrace::TileConfig config{};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
        config.rows[i] = static_cast<std::uint8_t>(i >= 6 ? group / 4 : rows);
        config.row_bytes[i] = static_cast<std::uint16_t>(i >= 4 && i < 6 ? group : 64);
    }
    _tile_loadconfig(&config);
}

template <class Configure>
void report(int group, int rows, Configure configure) {
    if (sigsetjmp(resume, 1) == 0) {
        configure();
        asm volatile("sttilecfg %0\n\ttilerelease" : "=m"(seen));
    }
    std::printf("%d %d ", group, rows);
    for (const unsigned char byte : seen) std::printf("%02x", byte);
    std::printf("\n");
}

}  // namespace

int main(int count, char** words) {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, nullptr);
    headrace::KernelTable table;
    headrace::amx::fill_tiles(table);
    const bool intrinsic = count > 1 && std::strcmp(words[1], "control") == 0;
    for (int rows = 1; rows <= 16; ++rows)
        for (const headrace::Format format : {headrace::Format::w4, headrace::Format::w8g16}) {
            const int group = headrace::kFormatTraits[static_cast<int>(format)].group;
            std::memset(seen, 0xee, sizeof seen);
            report(group, rows, [&] {
                if (intrinsic) control(group, rows);
                else table.tiles.configure(format, rows);
            });
        }
}
