"""fuserec: trained recommender checkpoints to quantized engines, served by NVIDIA Triton, called by a small client.

Import the room you need, such as `fuserec.client`; this package itself imports nothing.
"""

__version__ = "0.1.0"
