use tailor_domain::Family;
use tailor_pb::dataset::{PreviewRequest, PreviewRow};
use tonic::{Code, Status};

use crate::support::{EOS, NAME, Service, expect_status};

async fn preview(service: &Service, base: &str, rows: u32) -> Result<Vec<PreviewRow>, Status> {
    let request = PreviewRequest { name: NAME.into(), version: 0, base: base.into(), rows, ..Default::default() };
    Ok(service.client.clone().preview(request).await?.into_inner().rows)
}

#[tokio::test]
async fn without_a_base_the_rendered_text_is_shown() {
    let service = Service::with_dataset().await;
    let rows = preview(&service, "", 0).await.expect("shown");
    assert_eq!(rows.len(), 3);
    assert!(rows[0].prompt.starts_with("Correct: wrong 1 ") && rows[0].target.starts_with("Right-1-"));
    assert!(rows.iter().all(|row| row.tokens.is_empty() && row.encoder_tokens.is_empty()));
    assert_eq!(preview(&service, "", 100).await.expect("shown").len(), 36, "no more than there are, none hidden");
}

#[tokio::test]
async fn with_a_base_tokens_and_loss_are_shown() {
    let service = Service::with_dataset().await;
    service.add_base("llama", Family::Decoder, None).await;
    service.add_base("t5", Family::EncoderDecoder, None).await;
    let row = preview(&service, "llama", 1).await.expect("shown").remove(0);
    let text = |in_loss| -> String {
        row.tokens.iter().filter(|token| token.in_loss == in_loss).map(|token| token.text.as_str()).collect()
    };
    assert_eq!((text(false), text(true)), (row.prompt.clone(), format!("{}</s>", row.target)));
    assert_eq!(row.tokens.last().map(|token| token.id), Some(EOS));

    let row = preview(&service, "t5", 1).await.expect("shown").remove(0);
    let encoder: String = row.encoder_tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(encoder, format!("{}</s>", row.prompt));
    assert!(row.tokens.iter().all(|token| token.in_loss) && row.encoder_tokens.iter().all(|token| !token.in_loss));
}

#[tokio::test]
async fn a_preview_of_what_is_not_there_or_of_too_much_is_refused() {
    let service = Service::with_dataset().await;
    expect_status(preview(&service, "gpt", 1).await, Code::NotFound, &["base gpt does not exist", "tailor base add"]);
    expect_status(preview(&service, "", 101).await, Code::InvalidArgument, &["rows", "limit of 100"]);
    let request = PreviewRequest { name: "spelling".into(), ..Default::default() };
    expect_status(service.client.clone().preview(request).await, Code::NotFound, &["spelling"]);
}
