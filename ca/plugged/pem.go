package plugged

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	// maxSize bounds a file in bytes.
	maxSize = 1 << 20
	// maxCertificates bounds a chain and the roots: nobody has more, and every peer
	// has to take them in each handshake.
	maxCertificates = 16
	// minRSA is the shortest RSA key in bits (NIST SP 800-57, 112 bits of strength).
	minRSA = 2048
)

// ParseCertificates reads certificates in PEM, one after the other and nothing
// else but white space between them, so that a file that was cut off or put
// together wrongly is found out. It returns at least one.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, fmt.Errorf("there is text that is no PEM after %d certificates; leave certificates only", len(out))
		}
		if block, rest = decode(rest); block == nil {
			return nil, fmt.Errorf("PEM block %d cannot be read; it may be cut off", len(out)+1)
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is a %s; leave certificates only", len(out)+1, block.Type)
		}
		if len(out) == maxCertificates {
			return nil, fmt.Errorf("there are more than %d certificates", maxCertificates)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read: %w", len(out)+1, err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return out, nil
}

// decode is pem.Decode of a block at the very beginning: pem.Decode alone would
// look for another one behind a damaged one.
func decode(data []byte) (*pem.Block, []byte) {
	end := bytes.Index(data, []byte("\n-----END "))
	if end < 0 {
		return nil, data
	}
	line := bytes.IndexByte(data[end+1:], '\n')
	if line < 0 {
		line = len(data) - end - 2
	}
	block, rest := pem.Decode(data[:end+line+2])
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, data
	}
	return block, data[end+line+2:]
}

// parseKey reads one private key in PEM: PKCS #8, or the older forms of EC and RSA
// keys.
func parseKey(data []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(data)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it is not one private key in PEM; it may be cut off")
	}
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, errors.New("the key is encrypted; give it unencrypted in a file that only this user may read")
	case block.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case block.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("it is a %s, not a private key", block.Type)
	}
	if err != nil {
		// The parser's words could hold parts of the key.
		return nil, errors.New("the key cannot be read; it may be damaged")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	if k, ok := signer.(*rsa.PrivateKey); ok && k.N.BitLen() < minRSA {
		return nil, fmt.Errorf("an RSA key of %d bits is too short, %d at least", k.N.BitLen(), minRSA)
	}
	return signer, nil
}
