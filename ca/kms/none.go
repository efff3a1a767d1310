//go:build !pkcs11 || !cgo

package kms

import (
	"context"
	"errors"
)

func open(context.Context, string, string) (manager, error) {
	return nil, errors.New("this writ-ca cannot use PKCS #11, which needs C; build one with CGO_ENABLED=1 go build -tags pkcs11 ./cmd/writ-ca")
}
