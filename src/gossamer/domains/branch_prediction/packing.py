"""Numbers of few bits in a row of bytes, lowest bit first."""

from __future__ import annotations


class BitWriter:
    """Collects fields; `bytes` pads the last byte with zeros."""

    def __init__(self) -> None:
        self._value, self._count = 0, 0

    def put(self, number: int, bits: int) -> None:
        """Append a number, 0 <= number < 2^bits."""
        if not 0 <= number < 1 << bits:
            raise ValueError(f"{number} does not fit {bits} bits")
        self._value |= number << self._count
        self._count += bits

    def put_signed(self, number: int, bits: int) -> None:
        """Append a number in two's complement."""
        if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
            raise ValueError(f"{number} does not fit {bits} signed bits")
        self.put(number % (1 << bits), bits)

    def bytes(self) -> bytes:
        """What was put, in ceil(bits / 8) bytes."""
        return self._value.to_bytes((self._count + 7) // 8, "little")


class BitReader:
    """Reads what a `BitWriter` wrote. Raises EOFError past the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, bits: int) -> int:
        """The next number of so many bits."""
        if bits > self._left:
            raise EOFError(f"needs {bits} more bits, {self._left} are left")
        number = self._value % (1 << bits)
        self._value >>= bits
        self._left -= bits
        return number

    def take_signed(self, bits: int) -> int:
        """The next number in two's complement."""
        number = self.take(bits)
        return number - (1 << bits) if number >> (bits - 1) else number
