"""A score that processes of a test import."""


def total(config, folder, device):
    if config["options"].get("fail"):
        raise ValueError("no score today")
    (folder / "ran").touch()
    return {"values": [config["options"]["factor"] * int(a["a"] + a["b"]) for a in config["architectures"]]}
