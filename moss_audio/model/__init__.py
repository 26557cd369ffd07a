"""The network in PyTorch: training and GPU inference. Parameter names are the checkpoint's tensor names."""
