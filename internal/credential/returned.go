package credential

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// returnedPart is how many revocations go into one message to the authority at most,
// and returnedSize how many bytes, unless it is a single one: the authority takes no
// large messages.
const (
	returnedPart = 100
	returnedSize = 8 << 10
)

// giveBack gives the authority the list back that this source has kept, if the
// authority's ledger was restored from a backup since it made that list: what was
// revoked after the backup is in no ledger any more. The error says that it is to be
// tried again, before anything newer takes the place of what was kept.
func (s *Source) giveBack(ctx context.Context, conn grpc.ClientConnInterface, newer *capb.RevocationList) error {
	kept := s.revokedNow().list
	if newer.GetRestoredAt() == nil || len(kept.GetRevocations()) == 0 || !kept.GetMadeAt().AsTime().Before(newer.GetRestoredAt().AsTime()) {
		return nil
	}
	resp, err := giveBack(ctx, capb.NewRevocationFeedClient(conn), kept)
	switch status.Code(err) {
	case codes.OK:
		s.log.WarnContext(ctx, "the authority was restored from a backup; it has the list of revocations back that was kept here",
			slog.Time("list_of", kept.GetMadeAt().AsTime()), slog.Uint64("revoked_again", uint64(resp.GetAdopted())))
		return nil
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled:
		return err
	default:
		s.log.ErrorContext(ctx, "the authority was restored from a backup and does not take the list of revocations back that was kept here; compare writ certs revocations with what you revoked",
			slog.Any("error", err))
		return nil
	}
}

func giveBack(ctx context.Context, client capb.RevocationFeedClient, list *capb.RevocationList) (*capb.ReturnRevocationsResponse, error) {
	stream, err := client.ReturnRevocations(ctx)
	if err != nil {
		return nil, err
	}
	statement, rest := list.GetStatement(), list.GetRevocations()
	for len(rest) > 0 {
		n := part(rest)
		if err := stream.Send(&capb.ReturnRevocationsRequest{Statement: statement, Revocations: rest[:n]}); err != nil {
			if errors.Is(err, io.EOF) {
				break // the answer says why
			}
			return nil, err
		}
		statement, rest = "", rest[n:]
	}
	return stream.CloseAndRecv()
}

// part is how many of the next revocations go into one message.
func part(rest []*capb.Revocation) int {
	size := 0
	for n, r := range rest {
		if size += proto.Size(r); n == returnedPart || n > 0 && size > returnedSize {
			return n
		}
	}
	return len(rest)
}
