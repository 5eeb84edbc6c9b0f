// The kernels of convolve_dw.cu on tensor cores.

CONV_DW(conv_dw_tf32_16, true, TensorTile<16, 2, true>)
CONV_DW(conv_dw_tf32_32, true, TensorTile<32, 4, true>)
CONV_DW(conv_dw_tf32_64, true, TensorTile<64, 4, true>)
