#include "matmul.inl"
