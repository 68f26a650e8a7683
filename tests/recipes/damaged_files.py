"""Damaged and hostile compressed files: ``python -m tests.recipes.damaged_files --cases 1000 --impl cpp``.

Each case is a sound file with bytes flipped, cut, added or replaced, or with a header that claims something else and
checksums that fit. Decoding must give the image or a RecipeError; the program prints how many of each, the slowest case
and the growth of memory, under a limit on the address space.
"""

import argparse
import random
import resource
import time
import zlib
from collections import Counter

import torch

from fastvae.nn.pixelcnn import PixelCNN
from fastvae.recipes import RecipeError
from fastvae.recipes.uses.compress import CRC, LAYOUT, compress_images, decompress_images, read_header

SIZES = (0, 1, 2, 7, 28, 300, 4096, 65535)
FOREIGN = (b"\x89PNG\r\n\x1a\n", b"PK\3\4", b"\x1f\x8b\x08", b"FVPX", b"FVPX\1", b"FVPX\2", b"\0" * 60, b"")


def example(impl="cpp", likelihood="bernoulli", size=(6, 5), images=2):
    """A network, images of it and their file."""
    torch.manual_seed(1)
    network = PixelCNN(1, 6, 3, likelihood=likelihood, impl=impl).eval()
    x = network.sample(images, size)
    return network, x, compress_images(network, x)


def rewrite(data, content=None, **fields):
    """The file with other fields and words, and a checksum that fits."""
    content = data[LAYOUT.size : -CRC.size] if content is None else content
    head = LAYOUT.pack(*read_header(data)._replace(**{"words": len(content) // 4} | fields))
    return head + content + CRC.pack(zlib.crc32(head + content))


KINDS = ("flip", "bits", "cut", "longer", "foreign", "middle", "claim", "claims", "words", "few", "any")


def damage(data, random):
    """A damaged or hostile file made of a sound one."""
    kind = random.choice(KINDS)
    place = random.randrange(len(data))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]
    if kind == "bits":
        return bytes(byte ^ (random.random() < 0.1) for byte in data)
    if kind == "cut":
        return data[:place]
    if kind == "longer":
        return data + random.randbytes(random.randrange(1, 100))
    if kind == "foreign":
        return random.choice(FOREIGN) + random.randbytes(random.randrange(200))
    if kind == "middle":
        return data[:place] + data[place + random.randrange(1, 9) :]
    if kind == "claim":
        name = random.choice(("height", "width"))
        return rewrite(data, **{name: random.choice(SIZES)})
    if kind == "claims":
        images = random.choice((0, 1, 3, 1000, 10**6, 2**32 - 1))
        return rewrite(data, images=images, height=random.choice(SIZES), width=random.choice(SIZES))
    if kind == "words":
        return rewrite(data, random.randbytes(4 * random.randrange(12)), height=random.choice(SIZES))
    if kind == "few":
        return rewrite(data, words=random.choice((0, 1, 2**31, 2**32 - 1)))
    field = random.choice(("version", "impl", "likelihood", "levels", "channels"))
    return rewrite(data, **{field: random.randrange(256)})


def outcome(network, x, data):
    """What decoding gives: "image", "other image", "error" of one line, or "lines"."""
    try:
        found = decompress_images(network, data)
    except RecipeError as error:
        return "error" if len(str(error).splitlines()) == 1 else "lines"
    return "image" if torch.equal(found, x) else "other image"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--impl", default="cpp", choices=("cpp", "reference"))
    options = parser.parse_args()
    network, x, data = example(options.impl)
    outcome(network, x, data)
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 200 * 2**20,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, slowest = Counter(), (0.0, b"")
    chance = random.Random(options.seed)
    for _ in range(options.cases):
        damaged = damage(data, chance)
        start = time.perf_counter()
        found[outcome(network, x, damaged)] += 1
        slowest = max(slowest, (time.perf_counter() - start, damaged))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{dict(found)}; slowest {slowest[0]:.2f} s: {slowest[1].hex()}; memory grew by {grown:.0f} MB")


if __name__ == "__main__":
    main()
