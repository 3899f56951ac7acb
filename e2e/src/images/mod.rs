//! Container images without a container engine: files in, an archive out that `ctr images import`, `podman load` and `docker load` take. The same files make
//! the same bytes, so the digest says what is in an image.

pub mod archive;
pub mod files;
pub mod recipes;
