package rego

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"strconv"
	"strings"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// partialBody is the header in which Envoy says that it cut the body off at the
// filter's max_request_bytes.
const partialBody = "x-envoy-auth-partial-body"

// MessageSet describes the messages of gRPC services.
type MessageSet struct{ files *protoregistry.Files }

// ReadMessageSet reads a serialized google.protobuf.FileDescriptorSet, as
// `protoc --include_imports --descriptor_set_out` writes it.
func ReadMessageSet(b []byte) (*MessageSet, error) {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("file descriptor set: %w", err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, fmt.Errorf("file descriptor set: %w", err)
	}
	return &MessageSet{files}, nil
}

// parseBody reads the body by its content type. A body of a type that it does
// not know gives null, one that is cut off gives null and true.
func parseBody(h *authv3.AttributeContext_HttpRequest, path []string, set *MessageSet) (ast.Value, bool, error) {
	headers := h.GetHeaders()
	if headers[partialBody] == "true" {
		return ast.NullValue, true, nil
	}
	kind := headers["content-type"]
	if strings.Contains(kind, "application/grpc") {
		return grpcBody(h.GetRawBody(), path, set)
	}
	var parse func(body, kind string) (ast.Value, error)
	switch {
	case strings.Contains(kind, "application/json"):
		parse = jsonBody
	case strings.Contains(kind, "application/x-www-form-urlencoded"):
		parse = formBody
	case strings.Contains(kind, "multipart/form-data"):
		parse = multipartBody
	default:
		return ast.NullValue, false, nil
	}
	body := h.GetBody()
	if body == "" {
		body = string(h.GetRawBody())
	}
	if body == "" {
		return ast.NullValue, false, nil
	}
	if length, ok := headers["content-length"]; ok {
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil {
			return nil, false, fmt.Errorf("content-length: %w", err)
		}
		if n > int64(len(body)) {
			return ast.NullValue, true, nil
		}
	}
	v, err := parse(body, kind)
	if err != nil {
		return nil, false, fmt.Errorf("body: %w", err)
	}
	return v, false, nil
}

func jsonBody(body, _ string) (ast.Value, error) { return wholeJSON([]byte(body)) }

func formBody(body, _ string) (ast.Value, error) {
	v, err := url.ParseQuery(body)
	if err != nil {
		return nil, err
	}
	return valuesObject(v).Value, nil
}

func multipartBody(body, kind string) (ast.Value, error) {
	_, params, err := mime.ParseMediaType(kind)
	if err != nil {
		return nil, err
	}
	boundary, ok := params["boundary"]
	if !ok {
		return ast.NullValue, nil
	}
	values := map[string][]*ast.Term{}
	for r := multipart.NewReader(strings.NewReader(body), boundary); ; {
		part, err := r.NextPart()
		// A part that is cut off gives an error that wraps io.EOF; the end of the
		// whole body is io.EOF itself.
		if err == io.EOF { //nolint:errorlint // see above
			break
		}
		if err != nil {
			return nil, err
		}
		name := part.FormName()
		if name == "" {
			continue
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return nil, err
		}
		var v ast.Value = ast.String(content)
		if strings.Contains(part.Header.Get("Content-Type"), "application/json") {
			if v, err = wholeJSON(content); err != nil {
				return nil, err
			}
		}
		values[name] = append(values[name], ast.NewTerm(v))
	}
	o := ast.NewObjectWithCapacity(len(values))
	for name, list := range values {
		o.Insert(ast.StringTerm(name), ast.ArrayTerm(list...))
	}
	return o, nil
}

// grpcBody reads the first message of a request, framed as in
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: one byte for
// compression, four for the length.
func grpcBody(raw []byte, path []string, set *MessageSet) (ast.Value, bool, error) {
	if set == nil || len(raw) == 0 {
		return ast.NullValue, false, nil
	}
	if len(path) != 2 {
		return nil, false, errors.New("body: the path of a gRPC call has two parts, service and method")
	}
	if len(raw) < 5 {
		return nil, false, errors.New("body: shorter than the frame of a gRPC message")
	}
	if raw[0] != 0 {
		return ast.NullValue, false, nil
	}
	size := binary.BigEndian.Uint32(raw[1:5])
	if uint64(size) > uint64(len(raw)-5) {
		return ast.NullValue, true, nil
	}
	input := set.input(path[0], path[1])
	if input == nil {
		return ast.NullValue, false, nil
	}
	msg := dynamicpb.NewMessage(input)
	if err := proto.Unmarshal(raw[5:5+size], msg); err != nil {
		return nil, false, fmt.Errorf("body: %w", err)
	}
	text, err := protojson.Marshal(msg)
	if err != nil {
		return nil, false, fmt.Errorf("body: %w", err)
	}
	v, err := wholeJSON(text)
	return v, false, err
}

// input finds the request message of a method that takes a single one.
func (s *MessageSet) input(service, method string) protoreflect.MessageDescriptor {
	d, err := s.files.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil
	}
	svc, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil
	}
	m := svc.Methods().ByName(protoreflect.Name(method))
	if m == nil || m.IsStreamingClient() {
		return nil
	}
	return m.Input()
}
