import os

# Tests are for the CPU: the same everywhere, and a GPU stays free for its user.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
