"""Signed statements: only what a trusted key has signed, whole, fresh and for this device, may be adopted."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.errors import NotFoundError, PreconditionError
from server.releases import (
    KeySet,
    Probe,
    Release,
    ReleaseSettings,
    Signed,
    SigningKey,
    Trust,
    TrustedKey,
    UntrustedError,
    first_trust,
    key_id,
    require_adoptable,
    verifies,
)

NOW = 1_700_000_000
KEY, OTHER = SigningKey.generate(), SigningKey.generate()


def release(**fields):
    """A release of the pump for the class pi4."""
    facts = {"detector": "pump", "device_class": "pi4", "bundle": "ab" * 32, "version": 3, "counter": 7}
    times = {"issued": NOW, "expires": NOW + 3600}
    return Release(**{**facts, **times, "settings": ReleaseSettings(false_alarm_rate=0.001), **fields})


def key_set(*keys, counter=1):
    """A set of public halves."""
    return KeySet(counter=counter, keys=[TrustedKey(public_key=key.public.hex(), created=NOW) for key in keys])


@pytest.fixture
def trust():
    """Of a device that trusts one key."""
    return Trust.of(key_set(KEY))


def test_what_was_signed_is_read_back(trust):
    """A release survives signing, a file and verification."""
    signed = Signed.from_json(KEY.sign("release", release()).to_json())

    assert trust.release(signed) == release()


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
@pytest.mark.promise("S7")
def test_no_bit_of_a_release_can_be_changed(place, bit):
    """A flipped bit of payload or signature is refused."""
    signed = KEY.sign("release", release())
    whole = bytearray(signed.payload + signed.signature)
    whole[place % len(whole)] ^= 1 << bit
    length = len(signed.payload)
    changed = Signed(bytes(whole[:length]), signed.key_id, bytes(whole[length:]))

    with pytest.raises(UntrustedError):
        Trust.of(key_set(KEY)).release(changed)


@pytest.mark.promise("S7")
def test_a_key_that_is_not_trusted_counts_for_nothing(trust):
    """Another key is refused, under its own name and under a borrowed one."""
    signed = OTHER.sign("release", release())

    for forged in (signed, dataclasses.replace(signed, key_id=KEY.key_id)):
        with pytest.raises(UntrustedError):
            trust.release(forged)


@pytest.mark.promise("S7")
def test_a_statement_of_one_kind_is_not_taken_for_another(trust):
    """A signed release is no probe and no set of keys, even where its payload would parse."""
    signed = KEY.sign("release", key_set(KEY, OTHER, counter=9))

    with pytest.raises(UntrustedError):
        trust.followed(signed)
    with pytest.raises(UntrustedError):
        trust.probe(KEY.sign("release", release()))


@pytest.mark.promise("S7")
@pytest.mark.parametrize(
    ("fields", "counter", "now"),
    [
        ({"device_class": "pi3"}, 0, NOW),
        ({}, 8, NOW),
        ({}, 0, NOW + 3601),
    ],
    ids=["another's", "older", "expired"],
)
def test_a_release_is_for_this_device_newer_and_fresh(fields, counter, now):
    """What is meant for others, older than what was seen, or expired is not adopted."""
    with pytest.raises(UntrustedError):
        require_adoptable(release(**fields), device_class="pi4", counter=counter, now=now)
    require_adoptable(release(), device_class="pi4", counter=7, now=NOW)


def test_a_newer_set_of_keys_is_followed_and_an_older_one_is_not(trust):
    """Rotation: what a trusted key vouches for is trusted; a set that comes late changes nothing."""
    both = trust.followed(KEY.sign("keys", key_set(KEY, OTHER, counter=2)))
    only_new = both.followed(OTHER.sign("keys", key_set(OTHER, counter=3)))

    assert set(both.keys) == {KEY.key_id, OTHER.key_id}
    assert set(only_new.keys) == {OTHER.key_id}
    assert only_new.followed(OTHER.sign("keys", key_set(KEY, OTHER, counter=2))) is only_new
    with pytest.raises(UntrustedError):
        only_new.release(KEY.sign("release", release()))


def test_a_device_trusts_first_whom_its_token_names():
    """The set of keys must be signed by the key whose fingerprint came with the token, and hold it."""
    signed = KEY.sign("keys", key_set(KEY))

    assert first_trust(signed, KEY.key_id).keys == {KEY.key_id: KEY.public}
    for wrong, fingerprint in ((signed, OTHER.key_id), (OTHER.sign("keys", key_set(KEY)), OTHER.key_id)):
        with pytest.raises(UntrustedError):
            first_trust(wrong, fingerprint)


@given(raw=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_what_is_no_statement_is_refused(raw):
    """Garbage in place of a file is an error that says so."""
    with pytest.raises(UntrustedError):
        Signed.from_json(raw)


def test_a_payload_of_a_newer_format_is_refused(trust):
    """A signed release with a field that this version does not know is not half understood."""

    class Newer(Release):
        colour: str = "blue"

    signed = KEY.sign("release", Newer(**release().model_dump()))

    with pytest.raises(UntrustedError, match="this version"):
        trust.release(signed)


def test_a_probe_is_signed_like_a_release(trust):
    """What is measured is vouched for, too."""
    fields = {"graphs": [{"sha256": "cd" * 32, "bytes": 10}], "issued": NOW, "expires": NOW + 1}
    probe = Probe(id="12" * 8, device_class="pi4", batch=64, rounds=5, **fields)

    assert trust.probe(KEY.sign("probe", probe)) == probe


def test_a_key_is_kept_for_its_owner_alone(tmp_path):
    """It is written with mode 600, read back the same, and refused where others may read it."""
    path = tmp_path / "signing.key"
    KEY.write(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.read(path).public == KEY.public
    path.chmod(0o644)
    with pytest.raises(PreconditionError, match="chmod 600"):
        SigningKey.read(path)
    with pytest.raises(NotFoundError):
        SigningKey.read(tmp_path / "none")


def test_an_answer_to_a_challenge_is_good_for_that_alone():
    """A device's signature over a nonce verifies for its purpose, its key and that nonce, and for no other."""
    signature = KEY.sign_bytes("device", b"north-7" + b"n" * 32)

    assert verifies(KEY.public, "device", b"north-7" + b"n" * 32, signature)
    assert not verifies(KEY.public, "release", b"north-7" + b"n" * 32, signature)
    assert not verifies(KEY.public, "device", b"north-7" + b"m" * 32, signature)
    assert not verifies(OTHER.public, "device", b"north-7" + b"n" * 32, signature)
    assert len(key_id(KEY.public)) == 16
