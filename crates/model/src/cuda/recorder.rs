//! What a benchmark records while the GPU works: events around each launch, the inputs of wide
//! products, and the times of loading. Only the feature `bench` builds it.

use std::sync::OnceLock;
use std::time::Duration;

use cudarc::driver::{CudaEvent, CudaStream, sys};
use parking_lot::Mutex;

use super::array::{Array, Element};
use super::product_plan::Product;
use super::staging::Times;

/// Products with a smaller side count as narrow.
const NARROW: usize = 128;

/// Records launches and products while a benchmark asks for them.
#[derive(Default)]
pub(super) struct Recorder {
    launches: Mutex<Option<Vec<Launch>>>,
    products: Mutex<Option<Vec<SavedProduct>>>,
    /// The time from a ready GPU to a loaded base, and the mean of its threads' times.
    pub(super) loading: OnceLock<(Duration, Times)>,
}

/// A launch, with an event before and one after it.
pub(super) struct Launch {
    pub(super) name: String,
    pub(super) began: CudaEvent,
    pub(super) ended: CudaEvent,
}

/// Records the end of a launch when it is dropped.
pub(super) struct Recording<'a> {
    recorder: &'a Recorder,
    stream: &'a CudaStream,
    name: &'a str,
    began: Option<CudaEvent>,
}

/// A wide product, with its inputs.
pub(super) struct SavedProduct {
    a: Array,
    b: Array,
    bias: Option<Array>,
    transposed: [bool; 2],
    sizes: [usize; 3],
    result_element: Element,
    scale: f32,
    adds: bool,
    scales: Option<[Array; 2]>,
}

impl Recorder {
    pub(super) fn start_launches(&self) {
        *self.launches.lock() = Some(Vec::new());
    }

    /// Whether launches or products are recorded now.
    pub(super) fn is_recording(&self) -> bool {
        self.launches.lock().is_some() || self.products.lock().is_some()
    }

    pub(super) fn take_launches(&self) -> Vec<Launch> {
        self.launches.lock().take().unwrap_or_default()
    }

    pub(super) fn start_products(&self) {
        *self.products.lock() = Some(Vec::new());
    }

    pub(super) fn take_products(&self) -> Vec<SavedProduct> {
        self.products.lock().take().unwrap_or_default()
    }

    /// Records a launch until the value is dropped, if launches are asked for.
    pub(super) fn launch<'a>(
        &'a self,
        stream: &'a CudaStream,
        name: &'a str,
    ) -> Option<Recording<'a>> {
        let wanted = self.launches.lock().is_some();
        let began = if wanted { event(stream) } else { None };
        began.is_some().then(|| Recording {
            recorder: self,
            stream,
            name,
            began,
        })
    }

    /// The same of a product. A wide one is saved as well if products are asked for.
    pub(super) fn product<'a>(
        &'a self,
        stream: &'a CudaStream,
        product: &Product<'_>,
    ) -> Option<Recording<'a>> {
        if product.sizes.iter().any(|&size| size < NARROW) {
            return self.launch(stream, "products, narrow");
        }
        if let Some(products) = self.products.lock().as_mut() {
            products.push(SavedProduct::new(product));
        }
        self.launch(stream, "products")
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let (Some(began), Some(ended)) = (self.began.take(), event(self.stream)) else {
            return;
        };
        if let Some(launches) = self.recorder.launches.lock().as_mut() {
            launches.push(Launch {
                name: self.name.to_owned(),
                began,
                ended,
            });
        }
    }
}

impl SavedProduct {
    fn new(product: &Product<'_>) -> Self {
        Self {
            a: product.a.clone(),
            b: product.b.clone(),
            bias: product.bias.cloned(),
            transposed: product.transposed,
            sizes: product.sizes,
            result_element: product.result_element,
            scale: product.scale,
            adds: product.plus.is_some(),
            scales: product.scales.map(|scales| scales.map(Array::clone)),
        }
    }

    /// Bytes of the result.
    pub(super) fn bytes(&self) -> usize {
        self.sizes[0] * self.sizes[1] * self.result_element.bytes()
    }

    /// The product, with its result at an address.
    pub(super) fn at(&self, result: u64) -> Product<'_> {
        Product {
            a: &self.a,
            b: &self.b,
            transposed: self.transposed,
            sizes: self.sizes,
            planned: None,
            result,
            result_element: self.result_element,
            scale: self.scale,
            plus: self.adds.then_some(result),
            bias: self.bias.as_ref(),
            scales: self.scales.as_ref().map(|[a, b]| [a, b]),
        }
    }
}

/// Records a timing event after the stream's work so far.
pub(super) fn event(stream: &CudaStream) -> Option<CudaEvent> {
    let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
    stream.record_event(Some(flags)).ok()
}
