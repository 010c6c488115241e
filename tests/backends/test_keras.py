"""The contract on Keras."""

from tests.contract import BackendContract


class TestKeras(BackendContract):
    name = "keras"
    export_name = "model.keras"
    export_script = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy, keras
model = keras.models.load_model(sys.argv[1])
assert "runner" not in sys.modules and "backends" not in sys.modules
numpy.save(sys.argv[2] + "/z.npy", model.predict(numpy.load(sys.argv[2] + "/x.npy"), verbose=0))
"""
