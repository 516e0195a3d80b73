// The Python face of the native kernels: numpy buffers in, numpy buffers out, the GIL released while they run.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace headrace {
void bind_adapters(nb::module_& m);
void bind_chain(nb::module_& m);
void bind_dense(nb::module_& m);
void bind_matmul(nb::module_& m);
void bind_sampler(nb::module_& m);
void bind_tiles(nb::module_& m);
}

NB_MODULE(_native, m) {
    m.doc() = "headrace native kernels";
    // An engine process freezes what it starts with (gc.freeze), matrices and chain among it, and the interpreter takes frozen
    // objects apart no more when it ends: nanobind would call them leaked in forty lines of a server's log.
    nb::set_leak_warnings(false);
    headrace::bind_matmul(m);
    headrace::bind_adapters(m);
    headrace::bind_chain(m);
    headrace::bind_dense(m);
    headrace::bind_sampler(m);
    headrace::bind_tiles(m);
}
