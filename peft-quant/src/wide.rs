//! Functions that are compiled once for each width of vector registers, of which the widest that the machine has is run.
//!
//! All widths give the same bits: what is done to a number does not depend on its neighbours, and a product and a sum are fused only where
//! the function says so.

use std::sync::OnceLock;

/// The vector registers that a function is compiled for. Only made by [`Width::all`], which asks the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width(Registers);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "other machines have one width"))]
pub(crate) enum Registers {
    Portable,
    Avx2,
    Avx512,
}

impl Width {
    /// Those that this machine has, the narrowest first.
    pub(crate) fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "other machines have one width")]
        let mut all = vec![Width(Registers::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Width(Registers::Avx2));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                all.push(Width(Registers::Avx512));
            }
        }
        all
    }

    /// The widest.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Width> = OnceLock::new();
        *BEST.get_or_init(|| *Self::all().last().expect("portable is always there"))
    }

    pub(crate) fn registers(self) -> Registers {
        self.0
    }
}

/// What the codecs' loops are compiled for on this machine: `portable`, `avx2` or `avx512`.
pub fn kernel() -> &'static str {
    match Width::best().0 {
        Registers::Portable => "portable",
        Registers::Avx2 => "avx2",
        Registers::Avx512 => "avx512",
    }
}

/// Defines a function with a first argument `width: Width`.
macro_rules! wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(width: $crate::wide::Width, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match width.registers() {
                    $crate::wide::Registers::Portable => {}
                    // SAFETY: a `Width` is only made where the machine has these registers.
                    $crate::wide::Registers::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    $crate::wide::Registers::Avx512 => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = width;
            body($($arg),*)
        }
    };
}
pub(crate) use wide;
