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
    headrace::bind_matmul(m);
    headrace::bind_adapters(m);
    headrace::bind_chain(m);
    headrace::bind_dense(m);
    headrace::bind_sampler(m);
    headrace::bind_tiles(m);
}
