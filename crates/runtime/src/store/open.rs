//! Opens an object store by its URL: `file://` with fsync; S3, GCS and Azure with bounded retries
//! and credentials from the environment.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientConfigKey, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::error::{Error, Result, scrub};
use crate::store::local::Local;

/// Returns the store of a URL, rooted at the URL's path. A missing `file://` folder is created. No
/// request is sent yet.
///
/// # Errors
/// `InvalidArgument` if the URL or an option is wrong.
pub fn connect(url: &str, options: &BTreeMap<String, String>) -> Result<Arc<dyn ObjectStore>> {
    let shown = scrub(url);
    let parsed = Url::parse(url).map_err(|_| {
        Error::invalid(
            "url",
            format!("\"{shown}\" is not a URL such as file:///folder or s3://bucket"),
        )
    })?;
    let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|_| {
        Error::invalid(
            "url",
            format!("\"{shown}\" names no object store that is known"),
        )
    })?;
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local => return local(&parsed, &shown),
        ObjectStoreScheme::Memory => Arc::new(InMemory::new()),
        ObjectStoreScheme::AmazonS3 => {
            let mut builder = AmazonS3Builder::from_env()
                .with_url(url)
                .with_retry(retry());
            for (key, value) in options {
                builder = builder.with_config(option::<AmazonS3ConfigKey>(key)?, value);
            }
            let allow_http = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
            check_endpoint(
                builder
                    .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
                    .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint)),
                builder.get_config_value(&allow_http),
                "AWS_ALLOW_HTTP",
            )?;
            Arc::new(builder.build()?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_url(url)
                .with_retry(retry());
            for (key, value) in options {
                builder = builder.with_config(option::<GoogleConfigKey>(key)?, value);
            }
            Arc::new(builder.build()?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_url(url)
                .with_retry(retry());
            for (key, value) in options {
                builder = builder.with_config(option::<AzureConfigKey>(key)?, value);
            }
            let allow_http = AzureConfigKey::Client(ClientConfigKey::AllowHttp);
            check_endpoint(
                builder.get_config_value(&AzureConfigKey::Endpoint),
                builder.get_config_value(&allow_http),
                "AZURE_ALLOW_HTTP",
            )?;
            Arc::new(builder.build()?)
        }
        ObjectStoreScheme::Http => {
            let origin = &parsed[..url::Position::BeforePath];
            Arc::new(
                HttpBuilder::new()
                    .with_url(origin)
                    .with_retry(retry())
                    .build()?,
            )
        }
        _ => {
            return Err(Error::invalid(
                "url",
                format!("\"{shown}\" names no object store that is known"),
            ));
        }
    };
    if path.as_ref().is_empty() {
        return Ok(store);
    }
    Ok(Arc::new(PrefixStore::new(store, path)))
}

fn local(url: &Url, shown: &str) -> Result<Arc<dyn ObjectStore>> {
    let folder = url
        .to_file_path()
        .map_err(|()| Error::invalid("url", format!("\"{shown}\" names no local folder")))?;
    std::fs::create_dir_all(&folder)?;
    // Without fsync a power loss could undo a commit.
    let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
    Ok(Arc::new(Local(store)))
}

/// Checks that a plain http address is allowed, because without that every request would fail.
fn check_endpoint(
    endpoint: Option<String>,
    allow_http: Option<String>,
    variable: &str,
) -> Result<()> {
    let plain = endpoint.filter(|endpoint| endpoint.starts_with("http://"));
    // `object_store` takes these for true.
    let allowed = allow_http
        .is_some_and(|value| matches!(&*value.to_lowercase(), "1" | "true" | "on" | "yes" | "y"));
    let Some(endpoint) = plain.filter(|_| !allowed) else {
        return Ok(());
    };
    Err(Error::invalid(
        "store.options.allow_http",
        format!(
            "the object store's endpoint \"{}\" is plain http, which is not allowed: \
             set allow_http = \"true\" (or {variable}=true), or name an https endpoint",
            scrub(&endpoint)
        ),
    ))
}

fn option<K: FromStr<Err = object_store::Error>>(key: &str) -> Result<K> {
    key.to_ascii_lowercase().parse().map_err(|_| {
        Error::invalid(
            "store.options",
            format!("the object store has no option \"{key}\""),
        )
    })
}

fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 5,
        retry_timeout: Duration::from_secs(60),
        ..RetryConfig::default()
    }
}

/// Returns the store and key of a URL that names one object: its last path segment is the key.
///
/// # Errors
/// As [`connect`].
pub fn connect_object(
    url: &str,
    options: &BTreeMap<String, String>,
) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let shown = scrub(url);
    let (folder, name) = url
        .rsplit_once('/')
        .filter(|(folder, name)| !name.is_empty() && !folder.ends_with('/'))
        .ok_or_else(|| Error::invalid("url", format!("\"{shown}\" names no object")))?;
    let key = Path::from_url_path(name)
        .map_err(|_| Error::invalid("url", format!("\"{shown}\" names no object")))?;
    Ok((connect(&format!("{folder}/"), options)?, key))
}
