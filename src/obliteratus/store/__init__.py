"""The content-addressed cache on disk: stage outputs filed under what determines them."""

from obliteratus.store.cache import Store as Store
from obliteratus.store.cache import content_key as content_key
from obliteratus.store.cache import default_root as default_root
from obliteratus.store.files import atomic_file as atomic_file
from obliteratus.store.files import atomic_folder as atomic_folder
from obliteratus.store.files import check_target as check_target
from obliteratus.store.files import is_disk_full as is_disk_full
from obliteratus.store.files import read_json as read_json
from obliteratus.store.files import sha256_of_file as sha256_of_file
from obliteratus.store.files import write_json as write_json
from obliteratus.store.resumable import resumable_folder as resumable_folder
