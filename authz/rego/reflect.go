package rego

import (
	"encoding/base64"

	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
)

// message gives any message with its JSON names. Unlike protobuf's own JSON,
// and like the OPA-Envoy plugin, it writes enums as numbers, 64-bit numbers as
// numbers, and timestamps as objects.
func message(m protoreflect.Message) *ast.Term {
	if s, ok := m.Interface().(*structpb.Struct); ok {
		return ast.NewTerm(ast.MustInterfaceToValue(s.AsMap()))
	}
	o := ast.NewObjectWithCapacity(m.Descriptor().Fields().Len())
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		o.Insert(ast.InternedTerm(fd.JSONName()), field(fd, v))
		return true
	})
	return ast.NewTerm(o)
}

func field(fd protoreflect.FieldDescriptor, v protoreflect.Value) *ast.Term {
	switch {
	case fd.IsMap():
		o := ast.NewObjectWithCapacity(v.Map().Len())
		v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
			o.Insert(ast.StringTerm(k.String()), scalar(fd.MapValue(), e))
			return true
		})
		return ast.NewTerm(o)
	case fd.IsList():
		terms := make([]*ast.Term, v.List().Len())
		for i := range terms {
			terms[i] = scalar(fd, v.List().Get(i))
		}
		return ast.ArrayTerm(terms...)
	}
	return scalar(fd, v)
}

func scalar(fd protoreflect.FieldDescriptor, v protoreflect.Value) *ast.Term {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return message(v.Message())
	case protoreflect.EnumKind:
		return ast.NewTerm(ast.MustInterfaceToValue(int64(v.Enum())))
	case protoreflect.BytesKind:
		return bytesTerm(v.Bytes())
	case protoreflect.StringKind:
		return ast.StringTerm(v.String())
	}
	return ast.NewTerm(ast.MustInterfaceToValue(v.Interface()))
}

// bytesTerm is base64 as in JSON, nil for nothing.
func bytesTerm(b []byte) *ast.Term {
	if len(b) == 0 {
		return nil
	}
	return ast.StringTerm(base64.StdEncoding.EncodeToString(b))
}
