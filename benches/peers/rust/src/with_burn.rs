//! burn on its CPU backends and on wgpu: tensors do not change, so a clip is a new one. A mean is a product of matrices.

use std::borrow::Cow;

use burn::tensor::wgpu::wgpu::DeviceType;
use burn::tensor::{Device, Tensor, TensorData};
use byzclip::bench::cases::{MAX_NORM, Shape, Stage};
use byzclip::bench::measure::Place;

use crate::peer::{Failure, Offers, Peer, Work, host};

struct Burn {
    library: &'static str,
    method: &'static str,
    place: Place,
    device: Device,
    rows: Option<Tensor<2>>,
    shares: Option<Tensor<2>>,
    result: Option<Tensor<2>>,
}

pub(crate) fn peers() -> Offers {
    vec![("burn ndarray", ndarray()), ("burn flex", flex()), ("burn wgpu", wgpu())]
}

/// Deprecated by burn since 0.22 in favour of flex; what most programs still run on.
fn ndarray() -> Result<Box<dyn Peer>, Failure> {
    #[allow(deprecated)]
    let device = Device::ndarray();
    Ok(peer("burn ndarray", "host", host(false)?, device))
}

fn flex() -> Result<Box<dyn Peer>, Failure> {
    Ok(peer("burn flex", "host", host(false)?, Device::flex()))
}

/// Burn's own variable for the adapter that it takes; with `Cpu`, a software one.
const ADAPTER: &str = "CUBECL_WGPU_DEFAULT_DEVICE";

/// The adapter that burn takes by itself, or the one that [`ADAPTER`] tells it.
fn wgpu() -> Result<Box<dyn Peer>, Failure> {
    let (device, setup) = Device::wgpu_options().init_with_setup()?;
    let info = setup.adapter.get_info();
    if info.device_type == DeviceType::Cpu && std::env::var_os(ADAPTER).is_none() {
        let name = info.name;
        return Err(
            format!("got the software adapter {name}; expected a GPU; set {ADAPTER}=Cpu to time it").into()
        );
    }
    let driver = format!("{} {}", info.driver, info.driver_info);
    let driver = Some(driver.trim().to_owned());
    let place = Place { backend: "wgpu", device: info.name, driver, calibrated: false };
    Ok(peer("burn wgpu", "device", place, device))
}

fn peer(library: &'static str, method: &'static str, place: Place, device: Device) -> Box<dyn Peer> {
    Box::new(Burn { library, method, place, device, rows: None, shares: None, result: None })
}

impl Peer for Burn {
    fn library(&self) -> &'static str {
        self.library
    }

    fn package(&self) -> &'static str {
        "burn"
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn method(&self) -> &'static str {
        self.method
    }

    fn load(&mut self, work: &Work) -> Result<(), Failure> {
        self.rows = None;
        let Shape { clients, params } = work.batch.shape;
        let tensor = |values: &[f32], dimensions: [usize; 2]| -> Tensor<2> {
            Tensor::from_data(TensorData::new(values.to_vec(), dimensions), &self.device)
        };
        self.rows = Some(tensor(&work.batch.original, [clients, params]));
        self.shares = Some(tensor(&work.shares, [1, clients]));
        Ok(self.device.sync()?)
    }

    fn run(&mut self, work: &mut Work) -> Result<(), Failure> {
        // Clones share the data.
        let (Some(rows), Some(shares)) = (self.rows.clone(), self.shares.clone()) else {
            return Err("got a run before its data was loaded".into());
        };
        let norms = |rows: Tensor<2>| rows.square().sum_dim(1).sqrt();
        self.result = Some(match work.case.stage {
            Stage::Norms => norms(rows),
            Stage::Clip => rows.clone() * norms(rows).recip().mul_scalar(MAX_NORM).clamp_max(1.0),
            Stage::Mean => shares.matmul(rows),
        });
        Ok(self.device.sync()?)
    }

    fn result<'a>(&'a self, _work: &'a Work) -> Result<Cow<'a, [f32]>, Failure> {
        let result = self.result.clone().ok_or("got no result; expected one after a run")?;
        Ok(Cow::Owned(result.try_into_data()?.as_slice::<f32>()?.to_vec()))
    }

    fn discard(&mut self) {
        self.result = None;
    }
}
