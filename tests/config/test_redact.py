"""Addresses with a secret or to a metadata service, and text that would command a terminal."""

from __future__ import annotations

import pytest

from upl_ray.config.redact import find_flaw, sanitized

SECRET = "aB3/xY+9"
TOKEN = SECRET.replace("/", "")


@pytest.mark.parametrize(
    "address",
    [
        f"s3://KEY:{SECRET}@bucket/x",
        f"s3://KEY:12345/{SECRET}@bucket/x",
        f"s3://KEY:{SECRET}@{SECRET}@bucket/x",
        *(f"{scheme}://{TOKEN}@bucket/x" for scheme in ("s3", "s3a", "s3n", "gs", "gcs", "https", "git+https")),
        *(f"{scheme}://user:{SECRET}@host/x" for scheme in ("https", "ftp", "simplecache::s3")),
        f"redis://:{SECRET}@host:6379",
        *(f"https://host/x?{name}={SECRET}" for name in ("sig", "a=1&X-Amz-Signature", "api-key", "a=b&X_PWD")),
        f"s3://bucket/x?access_key=K&secret_key={SECRET}",
        f"https://host/x?a=1;sig={SECRET};b=2",
        f"https://host/x?sig='{SECRET}'",
    ],
)
def test_addresses_with_secrets_are_refused_and_never_repeated(address: str) -> None:
    problem = find_flaw(address)
    assert problem is not None
    assert problem.startswith("holds credentials")
    assert SECRET not in problem + sanitized(f"cannot read '{address}'.")
    assert TOKEN not in problem + sanitized(f"cannot read '{address}'.")


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "169.254.169.254:80", "[fe80::1%25eth0]", "[::ffff:169.254.169.254]"),
        *("[fd00:ec2::254]", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
        *("METADATA.google.internal.", "metadata.goog", "metadata"),
    ],
)
@pytest.mark.parametrize("address", ["http://{}/latest", "simplecache::http://{}/x", "ftp://me@{}", "http://{}"])
def test_link_local_and_metadata_addresses_are_refused(host: str, address: str) -> None:
    assert "metadata service" in str(find_flaw(address.format(host)))


@pytest.mark.parametrize(
    "address",
    [
        *(
            "s3://bucket/a:b@c.jpg",
            "s3://bucket/2024?.tar",
            "s3://bucket/a&token=3/img.jpg",
            "s3://b/k;secretary=1.jpg",
        ),
        *("http://localhost:9000/bucket/a@b.jpg", "http://minio:9000", "ray://head:10001", "s3://metadata/x"),
        *("https://[2001:db8::1]:80/a@b.jpg", "https://[2001:db8::1]/x", "http://100.100.100.201/x"),
        "abfs://container@account.dfs.core.windows.net/x",
        "https://host/x.jpg?size=3&design=4&author=me",
        *("/data/user:name@host", "sftp://me@host/x", "ftp://anonymous@host/x", "ftp://anonymous:@host/x"),
        "not http://[ an address",
    ],
)
def test_other_addresses_are_not(address: str) -> None:
    assert find_flaw(address) is None
    assert sanitized(address) == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://KEY:a/b@bucket/x and s3://KEY:c@b", "s3://***@bucket/x and s3://***@b"),
        ("uri='https://tok@h/x?a=1&sig=abc;d&b=2'.", "uri='https://***@h/x?a=1&sig=***&b=2'."),
        ("url=URL('https://h/x?a=1&X-Amz-Signature=abc')", "url=URL('https://h/x?a=1&X-Amz-Signature=***')"),
        ("GET /x?author=me;api_key=abc", "GET /x?author=me;api_key=***"),
        ("\x1b]0;title\x07 \r\x9b2J \u202ereversed\u2028", "\\x1b]0;title\\x07 \\r\\x9b2J \\u202ereversed\\u2028"),
        ("two\nlines\tof ä", "two\nlines\tof ä"),
    ],
)
def test_only_secrets_and_what_commands_a_terminal_are_replaced(text: str, expected: str) -> None:
    assert sanitized(text) == expected
