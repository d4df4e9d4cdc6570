//! The classes of errors, and the one table of their meaning outside: gRPC code, HTTP status, exit
//! code.

use tonic::Code;

/// The kind of an error: one of gRPC's codes that Togi uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request is wrong in every state of the system.
    InvalidArgument,
    /// The request names something that does not exist.
    NotFound,
    /// It exists already, with another content.
    AlreadyExists,
    /// The system's state does not allow it; repeating does not help until that changes.
    FailedPrecondition,
    /// A queue, quota or device is full.
    ResourceExhausted,
    /// A part of the system cannot be reached at the moment.
    Unavailable,
    /// Another writer won: a lost lease, a stale revision.
    Aborted,
    /// The end was requested.
    Cancelled,
    /// Bytes contradict their digest or manifest.
    DataLoss,
    /// It took too long.
    DeadlineExceeded,
    /// The name is known, but nothing is built behind it.
    Unimplemented,
    /// The caller did not prove its identity.
    Unauthenticated,
    /// The caller is known and may not do this.
    PermissionDenied,
    /// A fault of Togi.
    Internal,
}

/// The meaning of a class outside.
struct Answer {
    class: Class,
    code: Code,
    http_status: u16,
    /// Of a service's process and of the command: 1 failed, 2 usage, 3 not found, 4 unavailable,
    /// 5 refused, 130 interrupted.
    exit_code: u8,
}

const fn answer(class: Class, code: Code, http_status: u16, exit_code: u8) -> Answer {
    Answer {
        class,
        code,
        http_status,
        exit_code,
    }
}

/// In the order of the enum, because a class is its index.
const TABLE: [Answer; 14] = [
    answer(Class::InvalidArgument, Code::InvalidArgument, 400, 2),
    answer(Class::NotFound, Code::NotFound, 404, 3),
    answer(Class::AlreadyExists, Code::AlreadyExists, 409, 1),
    answer(Class::FailedPrecondition, Code::FailedPrecondition, 400, 5),
    answer(Class::ResourceExhausted, Code::ResourceExhausted, 429, 4),
    answer(Class::Unavailable, Code::Unavailable, 503, 4),
    answer(Class::Aborted, Code::Aborted, 409, 1),
    answer(Class::Cancelled, Code::Cancelled, 499, 130),
    answer(Class::DataLoss, Code::DataLoss, 500, 1),
    answer(Class::DeadlineExceeded, Code::DeadlineExceeded, 504, 4),
    answer(Class::Unimplemented, Code::Unimplemented, 501, 1),
    answer(Class::Unauthenticated, Code::Unauthenticated, 401, 1),
    answer(Class::PermissionDenied, Code::PermissionDenied, 403, 1),
    answer(Class::Internal, Code::Internal, 500, 1),
];

// A class without a row would be an index out of bounds; `Internal` is the last one.
const _: () = assert!(TABLE.len() == Class::Internal as usize + 1);

impl Class {
    fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|answer| answer.class)
    }

    /// Returns whether another attempt of the same job may succeed. `Internal` may, because a panic
    /// or a full disk often passes, and the limit of attempts bounds the rest. The two access
    /// classes may, because a token or a right can be renewed without a change to the job.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Class::Unavailable
                | Class::Aborted
                | Class::ResourceExhausted
                | Class::DeadlineExceeded
                | Class::Unauthenticated
                | Class::PermissionDenied
                | Class::Internal
        )
    }

    /// Returns the gRPC code.
    #[must_use]
    pub const fn code(self) -> Code {
        TABLE[self as usize].code
    }

    /// Returns the HTTP status.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        TABLE[self as usize].http_status
    }

    /// Returns the exit code of a process that ends with such an error.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        TABLE[self as usize].exit_code
    }

    /// Returns the class of a gRPC code. Codes that Togi does not send count as the nearest class.
    #[must_use]
    pub fn from_code(code: Code) -> Class {
        match code {
            Code::OutOfRange => Class::InvalidArgument,
            code => Class::all()
                .find(|class| class.code() == code)
                .unwrap_or(Class::Internal),
        }
    }

    /// Returns the gRPC code's name, for example `INVALID_ARGUMENT`.
    #[must_use]
    pub fn name(self) -> &'static str {
        code_name(self.code())
    }

    /// Returns the class with that [`Class::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Class> {
        Class::all().find(|class| class.name() == name)
    }
}

/// Returns a gRPC code's name, for example `INVALID_ARGUMENT`.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::error::Error;

    #[test]
    fn every_class_is_in_the_table_once_and_maps_to_its_code_and_back() {
        for (index, class) in Class::all().enumerate() {
            assert_eq!(class as usize, index, "{class:?}");
            let status = Status::from(Error::new(class, "a sentence"));
            assert_eq!(status.code(), class.code());
            assert_eq!(Class::from_code(status.code()), class);
            assert_eq!(Class::from_name(class.name()), Some(class));
            assert_eq!(status.message(), "a sentence");
        }
        assert_eq!(Class::from_code(Code::OutOfRange), Class::InvalidArgument);
        assert_eq!(Class::from_code(Code::Unknown), Class::Internal);
    }

    #[test]
    fn a_peer_that_refuses_access_is_no_final_failure() {
        for code in [Code::Unauthenticated, Code::PermissionDenied] {
            let error = Error::from(Status::new(code, "no"));
            assert_eq!(error.class().code(), code);
            assert!(error.class().retryable());
            assert_eq!(error.class().exit_code(), 1);
        }
        assert_eq!(Class::Unauthenticated.http_status(), 401);
        assert_eq!(Class::PermissionDenied.http_status(), 403);
    }

    #[test]
    fn seven_classes_deserve_another_attempt() {
        let retryable: Vec<&str> = Class::all()
            .filter(|class| class.retryable())
            .map(Class::name)
            .collect();
        assert_eq!(
            retryable,
            [
                "RESOURCE_EXHAUSTED",
                "UNAVAILABLE",
                "ABORTED",
                "DEADLINE_EXCEEDED",
                "UNAUTHENTICATED",
                "PERMISSION_DENIED",
                "INTERNAL"
            ]
        );
    }
}
