"""Makes the bucket of FLEETMARK_STORE where there is none yet."""

import os

import s3fs


def main() -> None:
    bucket = os.environ["FLEETMARK_STORE"].removeprefix("s3://").partition("/")[0]
    store = s3fs.S3FileSystem(endpoint_url=os.environ["FLEETMARK_S3_ENDPOINT"])
    if not store.exists(bucket):
        store.mkdir(bucket)
    print(f"bucket {bucket} is there")


if __name__ == "__main__":
    main()
