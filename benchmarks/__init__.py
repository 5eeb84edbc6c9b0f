"""Side-by-side timings against PyTorch and Chainer: extras, never needed to run or to test."""
