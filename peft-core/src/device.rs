//! Devices by name.

use burn::tensor::Device;

use crate::{Error, Result};

/// The device called `flex`, `cpu`, `wgpu`, `cuda`, `cuda:1`, `tch` or `tch:cuda:0`, if its backend is compiled in.
#[cfg_attr(feature = "tch", expect(deprecated, reason = "burn 0.22 still ships libtorch, and means to drop it"))]
pub fn device(name: &str) -> Result<Device> {
    let missing = || Error::config("device", name, format!("one of {}", available().join(", ")));
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index)),
        None => (name, None),
    };
    let _index = || index.map_or(Ok(0usize), |i| i.parse().map_err(|_| missing()));
    match (kind, index) {
        #[cfg(feature = "flex")]
        ("flex", None) => Ok(Device::flex()),
        #[cfg(feature = "cpu")]
        ("cpu", None) => Ok(Device::cpu()),
        #[cfg(feature = "wgpu")]
        ("wgpu", None) => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        ("cuda", _) => Ok(Device::cuda(_index()?)),
        #[cfg(feature = "tch")]
        ("tch", None) => Ok(Device::libtorch()),
        #[cfg(feature = "tch")]
        ("tch", Some(index)) => match index.strip_prefix("cuda") {
            Some(n) => Ok(Device::libtorch_cuda(n.trim_start_matches(':').parse::<usize>().map_err(|_| missing())?)),
            None => Err(missing()),
        },
        _ => Err(missing()),
    }
}

/// Whether it computes in the memory of the program: what it is given is not sent anywhere.
pub(crate) fn is_host(device: &Device) -> bool {
    ["flex", "cpu", "tch"].iter().any(|name| crate::device(name).is_ok_and(|host| host == *device))
}

/// The names of the devices whose backends are compiled in.
pub fn available() -> Vec<&'static str> {
    [
        (cfg!(feature = "flex"), "flex"),
        (cfg!(feature = "cpu"), "cpu"),
        (cfg!(feature = "wgpu"), "wgpu"),
        (cfg!(feature = "cuda"), "cuda:N"),
        (cfg!(feature = "tch"), "tch"),
        (cfg!(feature = "tch"), "tch:cuda:N"),
    ]
    .into_iter()
    .filter_map(|(compiled, name)| compiled.then_some(name))
    .collect()
}
