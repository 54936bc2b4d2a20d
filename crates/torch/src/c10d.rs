//! Ranks of one job: where they meet (c10d's TCPStore) and what they do together (Gloo's process group).
//!
//! Both are libtorch's own; nothing of the kind is written here. Every collective is called by all ranks in the same
//! order with tensors of the same size; a rank that died, or that is silent for longer than the group's timeout, makes the
//! call of all others fail with [`Error::Ranks`], and the group is of no more use. Neither end proves who it is: the
//! network between ranks must be one that only they are on.

use std::ffi::{CString, c_void};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::IntoRawFd as _;
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use crate::{Error, Result, ffi};

/// Keys and values that all ranks see, served by rank 0.
#[derive(Debug)]
pub struct Meeting {
    handle: *mut c_void,
}

// SAFETY: a TCPStore may be used from any thread; it has a lock of its own.
unsafe impl Send for Meeting {}
// SAFETY: as above.
unsafe impl Sync for Meeting {}

impl Meeting {
    /// Serves a meeting on `listener`, which is taken over.
    ///
    /// # Errors
    /// [`Error::Ranks`]: the socket cannot be served.
    pub fn host(listener: TcpListener, timeout: Duration) -> Result<Self> {
        let address = listener.local_addr().map_err(|error| Error::Ranks(format!("the meeting's socket: {error}")))?;
        Self::open(address, listener.into_raw_fd(), timeout)
    }

    /// Joins the meeting that another process hosts, waiting for it up to `timeout`; calls wait as long.
    ///
    /// # Errors
    /// [`Error::Ranks`]: nobody answers there.
    pub fn join(address: SocketAddr, timeout: Duration) -> Result<Self> {
        Self::open(address, -1, timeout)
    }

    fn open(address: SocketAddr, listener: i32, timeout: Duration) -> Result<Self> {
        let host = text(&address.ip().to_string())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `host` lives during the call; on success `handle` is a new meeting, which is ours.
        let status = unsafe {
            ffi::tailor_meeting_open(host.as_ptr(), address.port(), listener, millis(timeout), &raw mut handle)
        };
        ranks(&format!("meeting at {address}"), status)?;
        Ok(Self { handle })
    }

    /// # Errors
    /// [`Error::Ranks`]: the host is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let name = text(key)?;
        // SAFETY: `handle` is a meeting; name and value live during the call.
        let status = unsafe { ffi::tailor_meeting_set(self.handle, name.as_ptr(), value.as_ptr(), value.len()) };
        ranks(&format!("setting {key:?} at the meeting"), status)
    }

    /// Whether somebody has set the key; does not wait.
    ///
    /// # Errors
    /// [`Error::Ranks`]: the host is gone.
    pub fn has(&self, key: &str) -> Result<bool> {
        let name = text(key)?;
        let mut there = false;
        // SAFETY: as in `set`; `there` is written before the call returns.
        let status = unsafe { ffi::tailor_meeting_has(self.handle, name.as_ptr(), &raw mut there) };
        ranks(&format!("looking for {key:?} at the meeting"), status)?;
        Ok(there)
    }

    /// The key's value, waited for.
    ///
    /// # Errors
    /// [`Error::Ranks`]: nobody sets it within the timeout, or the host is gone.
    pub fn get(&self, key: &str) -> Result<Vec<u8>> {
        let name = text(key)?;
        let mut result = std::ptr::null_mut();
        // SAFETY: as in `set`; on success `result` is a new tensor handle.
        let status = unsafe { ffi::tailor_meeting_get(self.handle, name.as_ptr(), &raw mut result) };
        ranks(&format!("waiting for {key:?} at the meeting"), status)?;
        // SAFETY: the handle above, ours now.
        let value = unsafe { Tensor::from_ptr(result.cast()) };
        Ok(Vec::<u8>::try_from(&value)?)
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        // SAFETY: made by `tailor_meeting_open`, closed once.
        unsafe { ffi::tailor_meeting_close(self.handle) }
    }
}

/// The ranks of one job, connected to each other.
#[derive(Debug)]
pub struct ProcessGroup {
    handle: *mut c_void,
    rank: u32,
    world: u32,
}

// SAFETY: owned by one thread at a time; nothing in it is tied to the thread that made it.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Connects this rank to all others, which do the same; `own` is where they reach it. No collective, this one
    /// included, waits longer than `timeout` for another rank.
    ///
    /// # Errors
    /// [`Error::Ranks`]: some rank did not come, cannot be reached, or `own` is no address of this machine.
    pub fn open(meeting: &Meeting, own: IpAddr, rank: u32, world: u32, timeout: Duration) -> Result<Self> {
        if rank >= world {
            return Err(Error::Ranks(format!("rank {rank} of {world}: ranks count from 0")));
        }
        let address = text(&own.to_string())?;
        let mut handle = std::ptr::null_mut();
        let (number, count) = (int(rank)?, int(world)?);
        // SAFETY: the meeting is open; `address` lives during the call; on success `handle` is a new group, ours.
        let status = unsafe {
            ffi::tailor_group_open(meeting.handle, address.as_ptr(), number, count, millis(timeout), &raw mut handle)
        };
        ranks(&format!("rank {rank} of {world} at {own}"), status)?;
        Ok(Self { handle, rank, world })
    }

    pub fn rank(&self) -> u32 {
        self.rank
    }

    pub fn world(&self) -> u32 {
        self.world
    }

    /// Each tensor becomes the sum over all ranks. All of them travel as one flat bucket; what lies on another device
    /// travels through the host's memory. Tensors of one type, in the same shapes on every rank.
    ///
    /// # Errors
    /// [`Error::Ranks`]; no memory for the bucket.
    pub fn all_reduce(&self, tensors: &[&Tensor]) -> Result<()> {
        if let [one] = tensors
            && one.device() == Device::Cpu
            && one.is_contiguous()
        {
            return self.reduce(one, ffi::SUM);
        }
        let mut parts = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            parts.push(tensor.f_detach()?.f_reshape([-1])?.f_to_device(Device::Cpu)?);
        }
        let bucket = Tensor::f_cat(&parts, 0)?;
        self.reduce(&bucket, ffi::SUM)?;
        let mut start = 0;
        for tensor in tensors {
            let length = tensor.numel() as i64;
            let part = bucket.f_narrow(0, start, length)?.f_view(tensor.size().as_slice())?;
            tch::no_grad(|| tensor.shallow_clone().f_copy_(&part))?;
            start += length;
        }
        Ok(())
    }

    /// The sums over all ranks of a few numbers, the same bits everywhere.
    ///
    /// # Errors
    /// [`Error::Ranks`].
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let bucket = Tensor::f_from_slice(numbers)?;
        self.reduce(&bucket, ffi::SUM)?;
        Ok(Vec::<f64>::try_from(&bucket)?)
    }

    /// The least of all ranks' numbers.
    ///
    /// # Errors
    /// [`Error::Ranks`].
    pub fn least(&self, number: f64) -> Result<f64> {
        let bucket = Tensor::f_from_slice(&[number])?;
        self.reduce(&bucket, ffi::MIN)?;
        Ok(bucket.double_value(&[0]))
    }

    /// The tensor becomes what it is on rank `from`.
    ///
    /// # Errors
    /// [`Error::Ranks`]; no memory.
    pub fn broadcast(&self, tensor: &Tensor, from: u32) -> Result<()> {
        let from = int(from)?;
        let own = tensor.device() == Device::Cpu && tensor.is_contiguous();
        let host = match own {
            true => tensor.f_detach()?,
            false => tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?,
        };
        // SAFETY: the group is open; the tensor is alive, contiguous and on the CPU.
        let status = unsafe { ffi::tailor_group_broadcast(self.handle, ffi::handle(&host).cast_mut(), from) };
        ranks(&self.at("broadcast"), status)?;
        if !own {
            tch::no_grad(|| tensor.shallow_clone().f_copy_(&host))?;
        }
        Ok(())
    }

    /// Whether this rank's bytes are those of rank 0; asked by all ranks at once with as many bytes.
    ///
    /// # Errors
    /// [`Error::Ranks`].
    pub fn agrees(&self, bytes: &[u8]) -> Result<bool> {
        let theirs = Tensor::f_from_slice(bytes)?.f_to_kind(Kind::Uint8)?;
        self.broadcast(&theirs, 0)?;
        Ok(Vec::<u8>::try_from(&theirs)? == bytes)
    }

    /// Returns once all ranks have called it.
    ///
    /// # Errors
    /// [`Error::Ranks`].
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: the group is open.
        ranks(&self.at("barrier"), unsafe { ffi::tailor_group_barrier(self.handle) })
    }

    fn reduce(&self, tensor: &Tensor, op: i32) -> Result<()> {
        // SAFETY: the group is open; the tensor is alive, contiguous and on the CPU.
        let status = unsafe { ffi::tailor_group_all_reduce(self.handle, ffi::handle(tensor).cast_mut(), op) };
        ranks(&self.at("all-reduce"), status)
    }

    fn at(&self, what: &str) -> String {
        format!("{what} on rank {} of {}", self.rank, self.world)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: made by `tailor_group_open`, closed once.
        unsafe { ffi::tailor_group_close(self.handle) }
    }
}

fn ranks(what: &str, status: i32) -> Result<()> {
    ffi::check(status).map_err(|error| match error {
        Error::Torch(words) => {
            let line = words.lines().next().unwrap_or_default().trim();
            Error::Ranks(format!("{what}: {line}"))
        }
        other => other,
    })
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Ranks(format!("{text:?} has a zero byte")))
}

fn int(number: u32) -> Result<i32> {
    i32::try_from(number).map_err(|_| Error::Ranks(format!("{number} ranks are too many")))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(i64::MAX as u64 / 1_000_000)
}
