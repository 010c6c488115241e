"""Description of this backend."""

from runner.spec import About

ABOUT = About(name="witness", distribution="twinrun", packages=(), precisions=("exact",))
